#include "store/rebuild.h"

#include <errno.h>

#include "os/arena.h"
#include "os/files.h"
#include "store/board.h"
#include "store/extents.h"
#include "store/files.h"
#include "store/layout.h"
#include "store/reap.h"
#include "store/slots.h"
#include "store/stable.h"
#include "store/store.h"
#include "store/view.h"

static void count_sharers(struct store *store, uint32_t frame, uint32_t count)
{
    struct frame *record = frame_at(store, frame);
    store->head->shared_frames += !record->sharers && (count & ~PINNED);
    store->head->shared_pages += count & ~PINNED;
    record->sharers += count & ~PINNED;
    record->pins = (uint16_t)(record->pins + (count & PINNED ? 1 : 0));
}

/*
 * Lowers the high mark to the records that have memory in the file: whoever died may have raised it
 * without memory for the records, and to touch these would be SIGBUS.
 */
static void trust_records(struct store *store, int node)
{
    struct ids_state *state = store->ids[node].state;
    uint64_t start = store->records[node].offset, at = start, stop = start;
    if (!os_next_data(store->lock_fd, &at, &stop) || at != start)
        stop = start;
    uint64_t there = (stop - start) / sizeof(struct frame);
    there = there < store->ids[node].limit ? there : store->ids[node].limit;
    state->high = state->high < there ? state->high : there;
}

static void begin_anew(struct store *store)
{
    struct store_head *head = store->head;
    head->live_frames = head->shared_frames = head->shared_pages = head->stale_frames = 0;
    head->chains = head->dups = 0;
    for (int node = 0; node < store->nodes; node++) {
        trust_records(store, node);
        ids_clear(&store->ids[node]);
        forest_clear(&store->stable[node]);
        for (uint64_t i = 0; i < store->ids[node].state->high; i++) {
            struct frame *record = frame_at(store, (uint32_t)i + first_frame(store, node));
            record->sharers = record->pins = 0;
            record->dup_next = record->dup_prev = NO_FRAME;
        }
    }
    announcements_reset(store);
    events_reset(store);
}

static void bring_back(struct store *store, uint32_t frame)
{
    struct frame *record = frame_at(store, frame);
    if (record->state == FRAME_FREE)
        return;
    ids_mark(&store->ids[frame_node(store, frame)], frame_local(store, frame));
    if (record->state == FRAME_LIVE) {
        record->sum = store_sum(store, frame_bytes(store, frame));
        stable_add(store, frame, record->tree < store->nodes ? record->tree : 0);
        /* Nobody knows when its last sharer left: the next reaping decides whether it is freed. */
        if (record->sharers == 0) {
            record->left = store->head->forks;
            store->head->stale_frames++;
        }
    } else if (record->state == FRAME_SPARE && is_on_large_folio(store, frame)) {
        return;
    } else if (record->state == FRAME_SPARE || record->owner >= MAX_SLOTS ||
               store->head->slots[record->owner].kind != SLOT_ENGINE) {
        reap_frame(store, frame);
    }
}

/*
 * The counts of dead processes are cleared, and the sharers of each frame are
 * counted anew from those of the living.  A process that wants a frame
 * meanwhile waits for the lock, and one that dies is found by the next reaping.
 */
int store_rebuild(struct store *store)
{
    if (!store_has_files(store))
        return -EBADF; /* in another file nobody holds a lock, so everybody would look dead */
    begin_anew(store);
    for (unsigned i = 0; i < MAX_SLOTS; i++) {
        struct slot *slot = &store->head->slots[i];
        if (slot->kind != SLOT_FREE && !slot_is_held(store, i)) {
            clear_counts(store, i);
            store->head->deaths += slot->kind == SLOT_ENGINE;
            atomic_store(&slot->kind, SLOT_FREE);
        }
        if (slot->kind != SLOT_ENGINE)
            continue;
        uint64_t before = store->head->shared_pages;
        each_count(store, i, count_sharers);
        slot->pages = store->head->shared_pages - before;
    }
    for (int node = 0; node < store->nodes; node++)
        for (uint64_t i = 0; i < store->ids[node].state->high; i++)
            bring_back(store, (uint32_t)i + first_frame(store, node));
    extents_recount(store);
    store_look_away(store, true);
    return 0;
}
