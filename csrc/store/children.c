#include "store/children.h"

#include <unistd.h>

#include "os/arena.h"
#include "os/lease.h"
#include "store/debts.h"
#include "store/files.h"
#include "store/layout.h"
#include "store/pool.h"
#include "store/reap.h"
#include "store/slots.h"
#include "store/store.h"

/*
 * May this process map frames?  Asked without the lock, so only of what a rebuild under way in
 * another process does not change for a moment.
 */
static bool maps_frames(const struct store *store)
{
    return store->pinned ||
           (store->shared ? store->head->slots[store->slot].pages : store_bytes(store));
}

/*
 * This does without the lock, which another process may hold for long.  That is
 * safe because every frame that the child will map is one that we map now:
 * nobody frees it before we have left it, and we take the child's slot before
 * that.  If no slot is left the child inherits ours, since the frames that it
 * maps must outlast us.
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

/*
 * The next child is not to hold our slot because this one had to, having got none of its own: that
 * would keep the slot, and all that we shared, when we are dead.
 */
void store_fork_parent(struct store *store)
{
    if (store->memory && !store->taking && !store->pinned)
        store_disinherit(store);
    os_lease_drop(store->taking);
    store->taking = NULL;
}

/*
 * What was mapped with MADV_DONTFORK is not in the child, where its address may
 * be other memory by now: so nothing of it is unmapped.  The descriptors of a
 * shared store stay open, to attach again by.
 */
void store_abandon(struct store *store)
{
    store->memory = NULL;
    store->dead_count = 0;
    store->lease = store->taking; /* the parent drops its mapping of it, and this one keeps it */
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
