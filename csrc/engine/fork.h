/* The engines that fork() brings to rest. */
#ifndef KSMPY_ENGINE_FORK_H
#define KSMPY_ENGINE_FORK_H

#include "engine/engine.h"

/* No fork happens in between. Taken before any lock of an engine's. */
void fork_hold(void);
void fork_let_go(void);
int fork_watch(ksmpy_engine *engine);
void fork_unwatch(ksmpy_engine *engine);

#endif
