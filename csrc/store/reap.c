/*
 * Who uses a store, and how it is noticed that somebody is dead.
 *
 * A slot is held by a lock on its byte of the lock file.  The lock belongs to
 * an open file description to which only a mapping refers, so the kernel drops
 * it when the last process that has the mapping ends, in whatever way.  Nobody
 * is told; whoever looks next takes back what the dead process held:
 *
 *   SLOT_ENGINE  its sharers, as it counted them itself, the frames that it was
 *                filling or freeing, the pages that it waited with
 *   SLOT_CHILD   a forked child's: frames that were there at the fork stay, stale,
 *                until it is gone.  A child gets its slot before the fork.
 *
 * A process that dies while it holds the store's lock may leave any structure
 * half changed.  The next to take the lock rebuilds all of it, from the states
 * of the frames and the counts of the processes that live.  These two are always
 * whole, because each change of them is the store of one word.
 */
#include "store/reap.h"

#include "store/board.h"
#include "store/files.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/pool.h"
#include "store/sharers.h"
#include "store/slots.h"
#include "store/store.h"

static void take_back(struct store *store, uint32_t frame, uint32_t count)
{
    struct frame *record = frame_at(store, frame);
    if (is_full(store, record))
        event_add_for_all(store, record->tree, record->sum);
    record->pins = (uint16_t)(record->pins - (count & PINNED ? 1 : 0));
    store_drop(store, frame, count & ~PINNED);
}

/*
 * Frees what the dead process was filling or freeing.  Nobody else has joined such a frame, and no
 * child of that process maps it: pages are mapped onto frames that are in the index (merge/publish.h).
 * Nor is it read, as it may have no memory yet, and a full file system none for it: that is SIGBUS.
 */
static void free_orphans(struct store *store, unsigned slot)
{
    for (int node = 0; node < store->nodes; node++)
        for (uint64_t i = 0; i < store->ids[node].state->high; i++) {
            uint32_t frame = (uint32_t)i + first_frame(store, node);
            const struct frame *record = frame_at(store, frame);
            bool half = record->state == FRAME_FILLING || record->state == FRAME_DEAD;
            if (half && record->owner == slot)
                store_free(store, frame);
        }
}

/*
 * Whatever its process had; it is free then.  Where that cannot be read, who has the lock next makes
 * the index anew.
 */
static void reap_slot(struct store *store, unsigned slot)
{
    struct slot *dead = &store->head->slots[slot];
    if (store->shared && dead->kind == SLOT_ENGINE) {
        if (each_count(store, slot, take_back) < 0) {
            store->head->half_changed = true; /* made anew, it needs no counts of the dead */
            return;
        }
        free_orphans(store, slot);
        announcements_forget_slot(store, slot);
        clear_counts(store, slot);
        store->head->deaths++;
    }
    atomic_store(&dead->kind, SLOT_FREE);
}

void slots_reap(struct store *store)
{
    if (!store_has_files(store))
        return; /* in another file nobody holds a lock, so everybody would look dead */
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
