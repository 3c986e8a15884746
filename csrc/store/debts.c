/*
 * What a process owes to a shared store whose lock it cannot have.
 *
 * Whoever holds the lock may be stopped, by a signal, a debugger or a freezer, for as long as it
 * pleases somebody.  What must not wait for that (a release, the death of an array, the end of a
 * merge that has mapped its pages) takes effect in this process at once; the store is told when
 * the lock is to be had, by whoever of this process has it first.  Until then frames have sharers
 * that have left them, which costs memory and nothing else.  If this process dies first, all that
 * it owed is taken back with the rest.
 */
#include "store/debts.h"

#include "os/arena.h"
#include "store/board.h"
#include "store/layout.h"
#include "store/pool.h"
#include "store/sharers.h"
#include "store/store.h"

void store_owe(struct store *store, struct debt debt)
{
    if (!store->debts.base &&
        arena_init(&store->debts, sizeof(struct debt), 2 * frame_limit(store)) < 0)
        store->bankrupt = true;
    else if (arena_grow(&store->debts, store->debt_count + 1) < 0)
        store->bankrupt = true;
    else
        *(struct debt *)arena_at(&store->debts, store->debt_count++) = debt;
}

void debt_pay(struct store *store, struct debt debt)
{
    switch ((enum debt_kind)debt.kind) {
    case DEBT_LEAVE:
        sharers_leave(store, debt.frame);
        break;
    case DEBT_PIN:
        sharers_pin(store, debt.frame);
        break;
    case DEBT_FREE:
        store_free(store, debt.frame);
        break;
    case DEBT_WITHDRAW:
        board_withdraw(store, debt.tree, debt.sum);
        break;
    case DEBT_SETTLE:
    case DEBT_GIVE_UP:
        board_settle(store, debt.tree, debt.sum, debt.kind == DEBT_SETTLE);
        break;
    }
}

void store_pay(struct store *store)
{
    uint64_t count = store->debt_count;
    if (!count || store->slot == NO_SLOT)
        return;
    store->debt_count = 0;
    for (uint64_t i = 0; i < count; i++)
        debt_pay(store, *(struct debt *)arena_at(&store->debts, i));
}

void store_forgive(struct store *store)
{
    arena_destroy(&store->debts);
    store->debt_count = 0;
    store->away = store->bankrupt = store->pinned = false;
}
