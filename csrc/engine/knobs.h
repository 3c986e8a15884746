/*
 * Setting and reading knobs (ksmpy.cdef.h has their names): their bounds, and the defaults of those
 * that are an engine's own.  Those that all who share a store follow are in store/rules.h.
 */
#ifndef KSMPY_ENGINE_KNOBS_H
#define KSMPY_ENGINE_KNOBS_H

#include "engine/engine.h"

void default_knobs(uint64_t *knobs);

#endif
