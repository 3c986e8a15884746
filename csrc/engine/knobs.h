/* Where each knob is defined. */
#ifndef KSMPY_ENGINE_KNOBS_H
#define KSMPY_ENGINE_KNOBS_H

#include "engine/engine.h"

void default_knobs(uint64_t *knobs);

#endif
