/*
 * Memory of huge extents that no frame uses, see store/extents.h.
 */
#ifndef KSMPY_STORE_SPARE_H
#define KSMPY_STORE_SPARE_H

#include <stdbool.h>
#include <stdint.h>

#include "store/store.h"

/* Makes those frames spare that wait for store_flush() and are of huge extents. false: no lock. */
bool spare_dead_frames(struct store *store);
/* Lets extents go, those with most spare frames first, until `frames` are spare at the most. */
void spare_at_most(struct store *store, uint64_t frames);

#endif
