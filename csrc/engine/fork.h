/* The engines that fork() brings to rest. */
#ifndef KSMPY_ENGINE_FORK_H
#define KSMPY_ENGINE_FORK_H

#include "engine/engine.h"

int fork_watch(ksmpy_engine *engine);
void fork_unwatch(ksmpy_engine *engine);

#endif
