/*
 * A shared store on a file system that has a size.  -ENOSPC: that is full.
 */
#ifndef KSMPY_STORE_ROOM_H
#define KSMPY_STORE_ROOM_H

#include <stdint.h>

#include "store/store.h"

/* What frames may take of a file system's memory, in pages, with `parts` of the reserve left. */
uint64_t room_beside(const struct store *store, uint64_t parts);
/* How many frames may be taken; none once it is full. */
uint64_t store_room(struct store *store);
void store_fills_up(struct store *store); /* a frame could not be filled */
/*
 * With the lock held, before frames of a node up to high are there: every process will be able to
 * join them.
 */
int store_count_for_all(struct store *store, int node, uint64_t high);
/* The same for a newcomer and the frames there are, as far as there is room. */
void store_count_for(struct store *store, unsigned slot);

#endif
