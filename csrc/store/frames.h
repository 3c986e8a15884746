/*
 * Frames, from the first to the last: each function takes the lock that it needs.  Where it is not
 * to be had, what must not wait is owed, and the rest fails with store_why_not().
 */
#ifndef KSMPY_STORE_FRAMES_H
#define KSMPY_STORE_FRAMES_H

#include <stdbool.h>
#include <stdint.h>

#include "store/store.h"

/* Takes up to *n consecutive empty frames; *n becomes how many. NO_FRAME: there are none left. */
uint32_t store_take(struct store *store, int node, uint64_t *n);
/*
 * Does the same for *n pages from `page` on, which is counted from address 0.  Each whole huge page
 * among them gets an extent to itself; where pages come before the first of these, only those get
 * frames now.  *extents: these are such, and to be put on huge pages before they are filled.
 */
uint32_t store_take_in_step(struct store *store, int node, uint64_t page, uint64_t *n,
                            bool *extents);
/* Copies n pages, which may be live, into frames. How many leading ones it copied, or -errno. */
int64_t store_fill(struct store *store, uint32_t first, const void *pages, uint64_t n);
/* Does the same with pages from anywhere, at most STORE_GATHER of them. */
#define STORE_GATHER 512
int64_t store_gather(struct store *store, uint32_t first, const void *const *pages, uint64_t n);
/*
 * Joins n frames before pages are mapped onto them: nobody frees them from now on.  Returns how
 * many leading ones were joined, since they are live and have room or are new ones of this process;
 * or -errno when none was.
 */
int64_t store_join(struct store *store, uint32_t first, uint64_t n);
/* The frame has one sharer less. */
void store_leave(struct store *store, uint32_t frame);
/* Gives n taken frames back that nobody has joined. */
void store_give_back(struct store *store, uint32_t first, uint64_t n);
/* Keeps a frame whose mapping lives on where nobody counts it. */
void store_pin(struct store *store, uint32_t frame);
/* No frame is pinned any more, by this process. */
void store_pins_are_gone(struct store *store);
/* Gives the memory of freed frames back, but for a share: see store/extents.h. */
void store_flush(struct store *store);
/* Gives that share back as well. */
void store_flush_all(struct store *store);
/* Frees the stale frames that nobody can map any more. true: none is left. */
bool store_reap(struct store *store);
/* Is called at the start of a pass: a full store that has room again wakes whoever waits for it. */
void store_look_for_room(struct store *store);

#endif
