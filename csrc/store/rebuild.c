#include "store/rebuild.h"

#include <errno.h>

#include "base/pages.h"
#include "os/arena.h"
#include "store/board.h"
#include "store/extents.h"
#include "store/files.h"
#include "store/layout.h"
#include "store/pool.h"
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
 * Memory for all records below the high marks, which is there unless somebody has written over a mark:
 * to touch what has none may be SIGBUS.  The file cannot be asked which ones have some.  Memory that
 * nobody has written to yet is a hole by its word (SEEK_HOLE), and records in use may lie behind it.
 */
static int need_records(struct store *store)
{
    int error = 0;
    for (int node = 0; node < store->nodes && !error; node++) {
        struct ids *ids = &store->ids[node];
        ids->state->high = least(ids->state->high, ids->limit);
        error = ids_allocate(ids);
    }
    return error;
}

static void begin_anew(struct store *store)
{
    struct store_head *head = store->head;
    head->live_frames = head->shared_frames = head->shared_pages = head->stale_frames = 0;
    head->chains = head->dups = 0;
    for (int node = 0; node < store->nodes; node++) {
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
        store_free(store, frame);
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
    int error = need_records(store);
    if (error)
        return error;
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
        error = each_count(store, i, count_sharers);
        if (error)
            return error; /* of those who live: frames that they map would look free */
        slot->pages = store->head->shared_pages - before;
    }
    for (int node = 0; node < store->nodes; node++)
        for (uint64_t i = 0; i < store->ids[node].state->high; i++)
            bring_back(store, (uint32_t)i + first_frame(store, node));
    extents_recount(store);
    store_look_away(store, true);
    return 0;
}
