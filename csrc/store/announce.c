#include "store/announce.h"

#include <errno.h>

#include "store/board.h"
#include "store/debts.h"
#include "store/lock.h"
#include "store/store.h"

/* Gives an outgrown table back in pieces, so that nobody waits long for the lock. */
static void trim(struct store *store)
{
    for (bool more = true; more && store_lock(store);) {
        more = board_trim(store);
        store_unlock(store);
    }
}

enum announced announcement_add(struct store *store, int tree, uint64_t sum, bool own)
{
    if (!store->shared)
        return ANNOUNCED_NOWHERE;
    if (!store->depth)
        board_prepare(store);
    if (!store_lock(store))
        return ANNOUNCED_UNKNOWN;
    enum announced found = board_announce(store, tree, sum, own);
    store_unlock(store);
    if (!store->depth && store->outgrown.size)
        trim(store);
    return found;
}

static void settle(struct store *store, enum debt_kind kind, int tree, uint64_t sum)
{
    store_settle(store, (struct debt){.kind = (uint8_t)kind, .tree = (uint8_t)tree, .sum = sum});
}

void announcement_remove(struct store *store, int tree, uint64_t sum)
{
    if (store->shared)
        settle(store, DEBT_WITHDRAW, tree, sum);
}

void announcement_settle(struct store *store, int tree, uint64_t sum, bool shared)
{
    settle(store, shared ? DEBT_SETTLE : DEBT_GIVE_UP, tree, sum);
}

int64_t events_read(struct store *store, uint64_t *read, struct event *out, int64_t max)
{
    if (!store_lock(store))
        return -EAGAIN;
    int64_t found = board_read(store, read, out, max);
    store_unlock(store);
    return found;
}
