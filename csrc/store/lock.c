#include "store/lock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "os/clock.h"
#include "store/debts.h"
#include "store/layout.h"
#include "store/mutex.h"
#include "store/rebuild.h"
#include "store/store.h"
#include "store/view.h"

#define TIMED 16 /* one in so many holdings is timed, since to read the clock takes time as well */

/*
 * Rebuilds the index if a holder of the lock died and may have left it half changed.  On an error
 * the mark stays, and the next process that takes the lock tries it.
 */
static int mend(struct store *store)
{
    struct store_head *head = store->head;
    int error = store_show(store);
    if (error || !head->half_changed)
        return error;
    error = store_rebuild(store);
    if (error)
        return error;
    head->half_changed = false;
    head->rebuilds++;
    return 0;
}

/*
 * Does what has to be done first with the lock that mutex_take() has taken, or has said error of.
 * false: the lock is not held, and this process does nothing more with the store (broken).
 */
static bool locked(struct store *store, int error)
{
    if (error) { /* the mutex is none any more: something has written over the file */
        store->broken = -EUCLEAN;
        return false;
    }
    store->depth = 1;
    store->broken = mend(store);
    if (store->broken) {
        store->depth = 0;
        mutex_give(store->head);
        return false;
    }
    store->head->holder = store->pid;
    if (store->locks++ % TIMED == 0)
        store->locked_at = os_now_ns();
    store_pay(store);
    return true;
}

bool store_lock(struct store *store)
{
    if (!store->shared || store->depth) {
        store->depth += store->shared;
        return true;
    }
    struct store_head *head = store->head;
    uint64_t waited = 0, limit = store->away ? 0 : LOCK_TRY_MS * 1000000;
    int error = store->broken ? -EAGAIN : mutex_take(head, limit, &waited);
    store->away = error == -EAGAIN || !locked(store, error);
    if (store->away)
        return false;
    head->lock_waits += waited != 0;
    head->lock_wait_ns += waited;
    return true;
}

int store_lock_soundly(struct store *store)
{
    uint64_t waited;
    int error = mutex_take(store->head, 0, &waited);
    if (error == -EAGAIN)
        return -EAGAIN;
    return locked(store, error) ? 0 : store->broken;
}

/*
 * Who gives the lock back without having it must not get below 0: every later lock would be taken for
 * a nested one, and nobody would be kept out by it any more.
 */
static bool has_lock(const struct store *store)
{
#ifdef KSMPY_DEBUG
    if (!store->depth) {
        fputs("ksmpy: a store's lock is given back that was not taken\n", stderr);
        abort();
    }
#endif
    return store->depth;
}

void store_unlock(struct store *store)
{
    if (!store->shared || !has_lock(store) || --store->depth)
        return;
    if (store->locked_at) {
        uint64_t held = os_now_ns() - store->locked_at;
        store->locked_at = 0;
        if (held > store->head->lock_hold_max_ns)
            store->head->lock_hold_max_ns = held;
    }
    store->head->holder = 0;
    mutex_give(store->head);
}

void store_settle(struct store *store, struct debt debt)
{
    if (!store_lock(store)) {
        store_owe(store, debt);
        return;
    }
    debt_pay(store, debt);
    store_unlock(store);
}
