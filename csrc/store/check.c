#include "store/check.h"

#include "base/report.h"
#include "os/arena.h"
#include "store/board.h"
#include "store/extents.h"
#include "store/layout.h"
#include "store/pool.h"
#include "store/stable.h"
#include "store/store.h"
#include "store/view.h"

struct frames_seen {
    struct report *report;
    struct store *read; /* whose bytes are looked at as well, or NULL */
    uint64_t live, shared, stale, sharers, chains, dups;
};

/*
 * Walks a chain.  Its indices come from a file and may lead anywhere, in a circle too: so the walk
 * ends at more frames than there are.
 */
static void see_chain(const struct store *store, uint32_t head, int tree, void *argument)
{
    struct frames_seen *seen = argument;
    struct report *report = seen->report;
    uint64_t length = 0;
    uint32_t before = NO_FRAME;
    for (uint32_t at = head; at != NO_FRAME; at = frame_at(store, at)->dup_next) {
        if (!frame_is_live(store, at) || seen->live + length >= store->head->live_frames) {
            complain(report, "frame of a chain is not live", at, head);
            return;
        }
        const struct frame *frame = frame_at(store, at);
        expect(report, "frame before in its chain", frame->dup_prev, before);
        expect(report, "tree of a frame", frame->tree, (uint64_t)tree);
        if (seen->read && store_sum(seen->read, frame_bytes(seen->read, at)) != frame->sum)
            complain(report, "frame's bytes have another checksum", at, frame->sum);
        seen->sharers += frame->sharers;
        seen->shared += frame->sharers != 0;
        seen->stale += frame->sharers == 0;
        before = at;
        length++;
    }
    seen->live += length;
    seen->chains += length > 1;
    seen->dups += length > 1 ? length : 0;
}

/*
 * Looks at every frame's record.  Those of frames that are being filled are counted here, because
 * such a frame has sharers before it is in a tree.
 */
static void see_new_frames(const struct store *store, struct frames_seen *seen)
{
    uint64_t live = 0;
    for (int node = 0; node < store->nodes; node++) {
        uint64_t used = 0, high = store->ids[node].state->high;
        for (uint64_t i = 0; i < high; i++) {
            const struct frame *frame = frame_at(store, (uint32_t)i + first_frame(store, node));
            bool in_use = ids_has(&store->ids[node], (uint32_t)i);
            used += in_use;
            live += frame->state == FRAME_LIVE;
            if ((frame->state != FRAME_FREE) != in_use)
                complain(seen->report, "state of a frame", frame->state, in_use);
            if (i % EXTENT && frame->extent)
                complain(seen->report, "an extent begins at a frame", frame->extent, i);
            if (frame->state == FRAME_SPARE &&
                !is_on_large_folio(store, (uint32_t)i + first_frame(store, node)))
                complain(seen->report, "a spare frame is a page of its own", i, 0);
            if (frame->state != FRAME_FILLING)
                continue;
            seen->sharers += frame->sharers;
            seen->shared += frame->sharers != 0;
        }
        expect(seen->report, "frames in use", store->ids[node].state->used, used);
    }
    expect(seen->report, "live frames that are in a tree", seen->live, live);
}

static void check_extents(const struct store *store, struct report *report)
{
    const struct store_head *head = store->head;
    struct extents_seen seen = extents_count(store);
    expect(report, "huge extents", head->huge_extents, seen.huge);
    expect(report, "spare frames", head->spare_frames, seen.spare);
    expect(report, "spare frames of torn extents", head->torn_spare_frames, seen.torn_spare);
    expect(report, "extents whose record is wrong", 0, seen.wrong);
}

static void check_frames(const struct store *store, struct frames_seen *seen)
{
    const struct store_head *head = store->head;
    struct report *report = seen->report;
    for (int tree = 0; tree < store->nodes; tree++)
        if (stable_visit_all(store, tree, see_chain, seen) < 0)
            complain(report, "stable tree is no red-black tree", (uint64_t)tree, 0);
    see_new_frames(store, seen);
    check_extents(store, report);
    expect(report, "live frames", head->live_frames, seen->live);
    expect(report, "shared frames", head->shared_frames, seen->shared);
    expect(report, "stale frames", head->stale_frames, seen->stale);
    expect(report, "chains", head->chains, seen->chains);
    expect(report, "frames in chains", head->dups, seen->dups);
    expect(report, "sharers of all frames", head->shared_pages, seen->sharers);
}

static void check_counts(const struct store *store, struct report *report)
{
    uint64_t pages = 0;
    uint32_t used = 0;
    for (unsigned i = 0; i < MAX_SLOTS; i++) {
        const struct slot *slot = &store->head->slots[i];
        pages += slot->kind == SLOT_ENGINE ? slot->pages : 0;
        used = slot->kind != SLOT_FREE ? i + 1 : used;
    }
    /* Read after the slots: another process may take one meanwhile, which only raises it. */
    uint32_t end = store->head->slots_end;
    if (end < used || end > MAX_SLOTS)
        complain(report, "slots in use", end, used);
    expect(report, "pages of all slots", store->head->shared_pages, pages);
}

int store_check(const struct store *store)
{
    struct report report = {0};
    struct frames_seen seen = {.report = &report};
    check_frames(store, &seen);
    check_counts(store, &report);
    return report.error ? report.error : announcements_check(store);
}

void store_report(struct store *store, struct report *report, uint64_t *sharers)
{
    struct frames_seen seen = {.report = report, .read = store};
    check_frames(store, &seen);
    if (store->shared)
        check_counts(store, report);
    *sharers = seen.sharers;
    store_look_away(store, true);
}
