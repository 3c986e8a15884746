/* The engines that fork() brings to rest. */
#ifndef KSMPY_ENGINE_FORK_H
#define KSMPY_ENGINE_FORK_H

#include "engine/engine.h"

/* From now on forks do so; 0, or a negative errno. */
int fork_watch(void);
/* With forks held off (os/forks.h): the engine is one of them, or none any more. */
void fork_enlist(ksmpy_engine *engine);
void fork_delist(ksmpy_engine *engine);

#endif
