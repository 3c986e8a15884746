/*
 * The store's lock.  Who gets it finds the index whole: it is made anew first, if its last owner has
 * died with it, and what this process owes is paid.
 */
#ifndef KSMPY_STORE_LOCK_H
#define KSMPY_STORE_LOCK_H

#include <errno.h>
#include <stdbool.h>

#include "base/pages.h"
#include "store/debts.h"
#include "store/store.h"

#define LOCK_TRY_MS 2 /* with who holds the lock, where others wait for us meanwhile */

/*
 * One holds the lock at a time; free for a private store. May be nested.  Whoever has it may be
 * stopped for ever: false after LOCK_TRY_MS, and from then on at once, until it is to be had again.
 * Never waited for longer with another lock in hand.
 */
KSMPY_MAY_REFUSE bool store_lock(struct store *store);
/*
 * After that: -EAGAIN.  Or it is broken for good: -EUCLEAN, the lock is none any more; -EBADF, the
 * program has closed the files of a store that is to be mended; another error, it cannot be read
 * or made anew.
 */
static inline int store_why_not(const struct store *store)
{
    return store->broken ? store->broken : -EAGAIN;
}
/* What store_lock() said last, or would say now without a try. */
static inline bool store_is_away(const struct store *store)
{
    return store->away || store->broken;
}
void store_unlock(struct store *store); /* only after that */
/* -EAGAIN; -EUCLEAN: it is no lock */
KSMPY_MAY_REFUSE int store_lock_soundly(struct store *store);
/* At once if the lock is to be had, and else owed. */
void store_settle(struct store *store, struct debt debt);

#endif
