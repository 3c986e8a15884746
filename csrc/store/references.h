/*
 * References to pages of the store's file that no mapping shows: see store/extents.h.
 */
#ifndef KSMPY_STORE_REFERENCES_H
#define KSMPY_STORE_REFERENCES_H

#include <stdbool.h>
#include <stdint.h>

#include "store/store.h"

/*
 * Is it proven that nobody has a reference to n frames of one extent, which nobody maps?  They are
 * DEAD and ours, and the first has memory.  Their memory may be cleared then, and the extent is torn
 * or, if it was, on a huge page again.  This may take 5 ms, and no lock is needed.
 */
bool frames_are_unreferenced(const struct store *store, const uint32_t *frames, uint64_t n);

#endif
