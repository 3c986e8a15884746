/*
 * What processes tell each other: announcements of pages that wait, and events.  The lock is taken
 * for each; where it is not to be had, what is told is owed, and what is asked is unknown.
 */
#ifndef KSMPY_STORE_ANNOUNCE_H
#define KSMPY_STORE_ANNOUNCE_H

#include <stdbool.h>
#include <stdint.h>

#include "store/board.h"
#include "store/store.h"

enum announced announcement_add(struct store *store, int tree, uint64_t sum, bool own);
/* A page of ours does not wait any more. */
void announcement_remove(struct store *store, int tree, uint64_t sum);
/* Ends a claim: the page of which we were to make a frame is its sharer now, or is not. */
void announcement_settle(struct store *store, int tree, uint64_t sum, bool shared);
/*
 * Reads up to max events that others have added since *read. -EOVERFLOW: some were missed; -EAGAIN:
 * the store's lock is not to be had.
 */
int64_t events_read(struct store *store, uint64_t *read, struct event *out, int64_t max);

#endif
