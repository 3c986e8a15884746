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
    ANNOUNCED_BY_KIN, /* one of a process that fork may have left the same page; nobody does so */
    ANNOUNCED_SOON, /* somebody does so */
    ANNOUNCED_UNKNOWN, /* the store's lock is not to be had */
};

struct event { /* a frame came, or has room again */
    uint64_t sum;
    int tree;
};

/*
 * Announces that a page of ours waits with this checksum. own: no other process has it by a fork.
 * The answer is never ANNOUNCED_UNKNOWN, nor ANNOUNCED_BY_KIN for an own page.
 */
enum announced board_announce(struct store *store, int tree, uint64_t sum, bool own);
/* Asks for the memory of the next larger table, which takes long: is called without the lock. */
void board_prepare(struct store *store);
/* Gives a part of the memory of a table back that was outgrown. false: there is none. */
bool board_trim(struct store *store);
/* Whether board_announce() would say ANNOUNCED_ELSEWHERE, or ANNOUNCED_BY_KIN. */
bool announcement_is_elsewhere(const struct store *store, int tree, uint64_t sum);
void board_withdraw(struct store *store, int tree, uint64_t sum);
/* Ends a claim: the page is a sharer of its frame now, or those who wait are told to look again. */
void board_settle(struct store *store, int tree, uint64_t sum, bool shared);
void announcements_forget_slot(struct store *store, unsigned slot);
int announcements_reset(struct store *store);
int announcements_check(const struct store *store); /* 0 or -EUCLEAN */

void event_add(struct store *store, int tree, uint64_t sum);
/* Adds an event on behalf of a dead process, which this one is to hear of, too. */
void event_add_for_all(struct store *store, int tree, uint64_t sum);
/* Reads up to max events that others have added since *read. -EOVERFLOW: some were missed. */
int64_t board_read(const struct store *store, uint64_t *read, struct event *out, int64_t max);
void events_reset(struct store *store);

#endif
