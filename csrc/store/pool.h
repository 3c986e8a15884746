/*
 * Which frames are in use, with the lock held, and which wait for their memory to be given back.
 */
#ifndef KSMPY_STORE_POOL_H
#define KSMPY_STORE_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "store/store.h"

/*
 * Takes up to *n consecutive frames, which are FILLING then; *n becomes how many. NO_FRAME: none.
 */
uint32_t pool_take(struct store *store, int node, uint64_t *n);
/* Takes whole extents, which count as huge from then on. */
uint32_t pool_take_extents(struct store *store, int node, uint64_t *n);
/* Can all frames of an extent be taken? false: there are no records for the last ones. */
bool pool_reaches(struct store *store, uint32_t extent);
/* Takes this frame, which is free. false: there is no such frame. */
bool pool_take_this(struct store *store, uint32_t frame);
/* Gives frames back that have no memory: it was punched out, or they never had any. */
void pool_give(struct store *store, uint32_t first, uint64_t n);
/* The frame is DEAD until store_flush() has given its memory back. */
void store_free(struct store *store, uint32_t frame);
/* It is DEAD and ours, and in no list: then the next store_flush() is to see to it. */
void frame_is_dead(struct store *store, uint32_t frame);
void pool_leave_to_flush(struct store *store, uint32_t frame);
/* May be asked of any number: freed frames may have no record behind them. */
bool frame_is_live(const struct store *store, uint32_t frame);
uint64_t store_bytes(const struct store *store); /* that frames have, or spare ones */
/* What else it takes; in a file that gets larger folios all that this has beside its frames. */
uint64_t store_metadata_bytes(const struct store *store);

#endif
