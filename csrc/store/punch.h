/* Holes in the store's file, in the place of frames that are not needed any more. */
#ifndef KSMPY_STORE_PUNCH_H
#define KSMPY_STORE_PUNCH_H

#include <stdbool.h>
#include <stdint.h>

#include "store/store.h"

void sort_frames(uint32_t *frames, uint64_t n);
/*
 * Frees n frames that are DEAD and ours, neighbours together, and puts them in order for that.
 * Returns how many it has dealt with: the lock was not to be had for the last ones, which still are
 * what they were.  Where no hole could be punched the next store_flush() tries again.
 */
uint64_t punch_frames(struct store *store, uint32_t *frames, uint64_t n);

#endif
