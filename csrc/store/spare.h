/*
 * Memory of huge extents that no frame uses, see store/extents.h.
 */
#ifndef KSMPY_STORE_SPARE_H
#define KSMPY_STORE_SPARE_H

#include <stdbool.h>
#include <stdint.h>

#include "store/store.h"

/* Of the frames that wait for store_flush(), those of huge extents become spare. false: no lock. */
bool spare_dead_frames(struct store *store);
/* Lets extents go until so many frames are spare at most, those with the most of them first. */
void spare_at_most(struct store *store, uint64_t frames);

#endif
