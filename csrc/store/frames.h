/*
 * Frames, from the first to the last: each function takes the lock that it needs.  Where it is not to
 * be had, what must not wait is owed, and the rest fails with store_why_not().
 */
#ifndef KSMPY_STORE_FRAMES_H
#define KSMPY_STORE_FRAMES_H

#include <stdbool.h>
#include <stdint.h>

#include "store/store.h"

/* Up to *n consecutive empty frames; *n says how many. NO_FRAME: out of them. */
uint32_t store_take(struct store *store, int node, uint64_t *n);
/*
 * The same for n pages from that one on, counted from address 0.  Of whole huge pages among them each
 * gets an extent to itself, on a huge page if that can be had.  Ends where such ones begin.
 */
uint32_t store_take_in_step(struct store *store, int node, uint64_t page, uint64_t *n);
/* Copies n pages, which may be live, into frames; how many leading ones, or -errno when none. */
int64_t store_fill(struct store *store, uint32_t first, const void *pages, uint64_t n);
/* The same of pages from anywhere, at most STORE_GATHER. */
#define STORE_GATHER 512
int64_t store_gather(struct store *store, uint32_t first, const void *const *pages, uint64_t n);
/*
 * Before n pages are mapped onto the frames: how many leading ones may be, which nobody frees from
 * now on; or -errno when none.  They are live and have room, or are this process's new ones.
 */
int64_t store_join(struct store *store, uint32_t first, uint64_t n);
void store_leave(struct store *store, uint32_t frame); /* one sharer less */
/* n taken frames that nobody has joined go back. */
void store_give_back(struct store *store, uint32_t first, uint64_t n);
void store_pin(struct store *store, uint32_t frame); /* its mapping lives on somewhere */
/* Gives the memory of freed frames back, but for a share: see store/extents.h. */
void store_flush(struct store *store);
void store_flush_all(struct store *store); /* including that */
/* Frees the stale frames that nobody can map any more; true: none is left. */
bool store_reap(struct store *store);
/* At the start of a pass: is a full one so no more? */
void store_look_for_room(struct store *store);

#endif
