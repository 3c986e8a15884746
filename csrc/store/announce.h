/*
 * What processes tell each other: announcements of pages that wait, and events.  The lock is taken
 * for it; what it cannot be had for is owed, or unknown.
 */
#ifndef KSMPY_STORE_ANNOUNCE_H
#define KSMPY_STORE_ANNOUNCE_H

#include <stdbool.h>
#include <stdint.h>

#include "store/board.h"
#include "store/store.h"

enum announced announcement_add(struct store *store, int tree, uint64_t sum);
/* A page of ours waits no more. */
void announcement_remove(struct store *store, int tree, uint64_t sum);
/* The page that we were to make a frame of is its sharer now, or is not. */
void announcement_settle(struct store *store, int tree, uint64_t sum, bool shared);
/* Up to max of those that came since *read, by others; -EOVERFLOW: some were missed. */
int64_t events_read(struct store *store, uint64_t *read, struct event *out, int64_t max);

#endif
