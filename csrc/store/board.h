/*
 * The announcements and events themselves, of a shared store with its lock held.
 */
#ifndef KSMPY_STORE_BOARD_H
#define KSMPY_STORE_BOARD_H

#include <stdbool.h>
#include <stdint.h>

#include "store/store.h"

enum announced {
    ANNOUNCED_NOWHERE, /* now a page of ours waits with it */
    ANNOUNCED_HERE, /* one does already */
    ANNOUNCED_ELSEWHERE, /* one of another process; we are to make the frame */
    ANNOUNCED_SOON, /* somebody does so */
    ANNOUNCED_UNKNOWN, /* the store's lock is not to be had */
};

struct event { /* a frame came, or has room again */
    uint64_t sum;
    int tree;
};

/* A page of ours waits with this checksum, or is to. Never ANNOUNCED_UNKNOWN. */
enum announced board_announce(struct store *store, int tree, uint64_t sum);
/* Without the lock: memory for the larger table that is needed soon, which takes long to get. */
void board_prepare(struct store *store);
/* A part of the memory of a table that was outgrown goes back; false: there is none. */
bool board_trim(struct store *store);
/* Would it be ANNOUNCED_ELSEWHERE? */
bool announcement_is_elsewhere(const struct store *store, int tree, uint64_t sum);
void board_withdraw(struct store *store, int tree, uint64_t sum);
/* Of a claim: the page is a sharer of its frame now, or those who wait are told to look again. */
void board_settle(struct store *store, int tree, uint64_t sum, bool shared);
void announcements_forget_slot(struct store *store, unsigned slot);
int announcements_reset(struct store *store);
int announcements_check(const struct store *store); /* 0 or -EUCLEAN */

void event_add(struct store *store, int tree, uint64_t sum);
/* The same of a dead process: we are to hear of it too. */
void event_add_for_all(struct store *store, int tree, uint64_t sum);
/* Up to max of those that came since *read, by others; -EOVERFLOW: some were missed. */
int64_t board_read(const struct store *store, uint64_t *read, struct event *out, int64_t max);
void events_reset(struct store *store);

#endif
