/* In a forked child: an inherited engine comes to life again. */
#ifndef KSMPY_ENGINE_REVIVE_H
#define KSMPY_ENGINE_REVIVE_H

#include "engine/engine.h"

/* Makes it able to unmerge memory of this process. */
int fork_revive(struct merger *merger);

#endif
