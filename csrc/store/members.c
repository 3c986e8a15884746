/*
 * Who uses a store, and what becomes of the dead.
 *
 * A slot is held by a lock on its byte of the lock file, through a description
 * that only a mapping refers to; so it ends with the last process that has the
 * mapping, however that ends, and nobody needs to be told.  Whoever looks next
 * takes back what the dead one held:
 *
 *   SLOT_ENGINE  its sharers, as it counted them itself, the frames that it was
 *                filling or freeing, the pages that it waited with
 *   SLOT_CHILD   a forked child's: frames that were there at the fork stay, stale,
 *                until it is gone.  A child gets its slot before the fork.
 *
 * Who dies with the store's lock in his hand may leave any structure half
 * changed.  The next one makes all of it anew, from the frames that are live
 * and the counts of those who are alive: they are changed one word at a time.
 */
#include "store/members.h"

#include <unistd.h>

#include "os/arena.h"
#include "os/lease.h"
#include "store/debts.h"
#include "store/files.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/pool.h"
#include "store/reap.h"
#include "store/slots.h"
#include "store/store.h"

void slots_reap(struct store *store)
{
    if (!store_has_files(store))
        return; /* everybody would look dead */
    for (unsigned i = 0; i < MAX_SLOTS; i++) {
        if (atomic_load(&store->head->slots[i].kind) == SLOT_FREE || slot_is_held(store, i))
            continue;
        if (!store_lock(store))
            return;
        if (atomic_load(&store->head->slots[i].kind) != SLOT_FREE && !slot_is_held(store, i))
            reap_slot(store, i);
        store_unlock(store);
    }
}

/* What a rebuild under way in another process has no part in. */
static bool maps_frames(const struct store *store)
{
    return store->pinned ||
           (store->shared ? store->head->slots[store->slot].pages : store_bytes(store));
}

/*
 * Without the lock, which another process may hold for long: a frame that the
 * child will map is one that we map, and nobody frees it before we have left it
 * and have seen our own slot.  A child for whom there is no slot holds ours:
 * what it maps must outlast us.
 */
void store_fork_prepare(struct store *store)
{
    struct store_head *head = store->head;
    store->taking = NULL;
    if (!head || !maps_frames(store))
        return; /* the child inherits no frame */
    uint32_t number = atomic_fetch_add(&head->forks, 1) + 1;
    if (slot_claim(store, SLOT_CHILD, &store->taking_slot, &store->taking) < 0) {
        slots_reap(store);
        if (slot_claim(store, SLOT_CHILD, &store->taking_slot, &store->taking) < 0)
            slots_lose(store, number);
    }
    if (store->taking)
        head->slots[store->taking_slot].fork = number;
}

void store_fork_parent(struct store *store)
{
    os_lease_drop(store->taking);
    store->taking = NULL;
}

/*
 * What was mapped with MADV_DONTFORK is not here, and its address may be
 * another's by now.  The descriptors of a shared store stay, to attach again.
 */
void store_abandon(struct store *store)
{
    store->memory = NULL;
    store->dead_count = 0;
    store->lease = store->taking; /* stays mapped: it is this child's lease */
    store->slot = store->taking_slot;
    store->taking = NULL;
    if (!store->shared) {
        store_close_files(store);
        return;
    }
    if (store->lease)
        slot_sign(store);
    arena_destroy(&store->dead);
    store->index = NULL;
    store->head = NULL;
    store->frames = NULL;
    store->counts[0].base = NULL;
    store->depth = 0;
    store->broken = 0;
    store_forgive(store);
}

void store_end_lease(struct store *store)
{
    os_lease_drop(store->lease);
    store->lease = NULL;
}
