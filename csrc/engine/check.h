/* Walks every structure and says what does not fit. */
#ifndef KSMPY_ENGINE_CHECK_H
#define KSMPY_ENGINE_CHECK_H

#include "engine/engine.h"

/* After each call that changes something: debug builds stop where a structure is not sound. */
#ifdef KSMPY_DEBUG
void check_step(ksmpy_engine *engine);
#else
static inline void check_step(ksmpy_engine *engine)
{
    (void)engine;
}
#endif

#endif
