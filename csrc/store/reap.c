#include "store/reap.h"

#include "store/board.h"
#include "store/layout.h"
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

void reap_slot(struct store *store, unsigned slot)
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
