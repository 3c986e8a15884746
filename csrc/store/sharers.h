/*
 * Who shares frames, with the lock held: whose count of them is changed one word at a time.
 */
#ifndef KSMPY_STORE_SHARERS_H
#define KSMPY_STORE_SHARERS_H

#include <stdbool.h>
#include <stdint.h>

#include "store/store.h"

/* How many of n frames may be joined, which nobody frees from now on; or -errno when none. */
int64_t sharers_join(struct store *store, uint32_t first, uint64_t n);
/* The same for one that is mapped already, with the lock held. */
void store_rejoin(struct store *store, uint32_t frame);
void sharers_leave(struct store *store, uint32_t frame);
void sharers_pin(struct store *store, uint32_t frame);
/* Or does so no more, but for children. With the lock held. */
void store_unpin(struct store *store, uint32_t frame);
/* A filled frame, whose checksum is known and which has sharers of ours, goes into the index. */
void store_publish(struct store *store, uint32_t frame, int tree);
/* n sharers of a frame have left it. */
void store_drop(struct store *store, uint32_t frame, uint32_t n);
/* Nobody of this process maps it any more, and it is in a tree. */
void free_live_frame(struct store *store, uint32_t frame);

#endif
