/*
 * Walks every structure and says what does not fit: for tests, and after each step of debug
 * builds.
 */
#include "engine/check.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/pages.h"
#include "base/rbtree.h"
#include "engine/locks.h"
#include "os/arena.h"
#include "pages/pages.h"
#include "store/store.h"

struct report {
    char *text;
    size_t size;
    int error;
};

static void complain(struct report *report, const char *what, uint64_t is, uint64_t should_be)
{
    if (report->error)
        return;
    report->error = -EUCLEAN;
    if (report->text)
        snprintf(report->text, report->size, "%s: %llu, should be %llu", what,
                 (unsigned long long)is, (unsigned long long)should_be);
}

static void expect(struct report *report, const char *what, uint64_t is, uint64_t should_be)
{
    if (is != should_be)
        complain(report, what, is, should_be);
}

/* Pages by state, as their records say. */
struct census {
    uint64_t pages_in[PAGE_STATES];
};

static const char *const kinds_of_pages[PAGE_STATES] = {
    [PAGE_NEW] = "new pages",         [PAGE_SEEN] = "seen pages",
    [PAGE_REFUSED] = "refused pages", [PAGE_WAITING] = "waiting pages",
    [PAGE_PAIRED] = "paired pages",   [PAGE_SHARED] = "shared pages",
    [PAGE_ZERO] = "zero pages",       [PAGE_HOLE] = "holes",
};

static void expect_census(struct report *report, const uint64_t *is, const struct census *census)
{
    for (int state = 0; state < PAGE_STATES; state++)
        expect(report, kinds_of_pages[state], is[state], census->pages_in[state]);
}

static void count_region(const struct pages *pages, uint32_t id, struct census *census,
                         struct report *report)
{
    const struct region *region = region_at(pages, id);
    struct census own = {0};
    for (uint64_t i = 0; i < region->n; i++) {
        const struct page *page = page_record(pages, region->base + (uint32_t)i);
        own.pages_in[page_state(page)]++;
        if (region_of(pages, region->base + (uint32_t)i) != id)
            complain(report, "owner of a page", region_of(pages, region->base + (uint32_t)i), id);
        if (page_state(page) == PAGE_SHARED && !frame_is_live(&pages->store, page->link))
            complain(report, "shared page's frame is in no tree", page->link, 0);
    }
    expect_census(report, region->pages_in, &own);
    for (int state = 0; state < PAGE_STATES; state++)
        census->pages_in[state] += own.pages_in[state];
}

/* In order of addresses every region begins where the one before it has ended, or later. */
static void check_addresses(const struct pages *pages, struct report *report)
{
    struct rb_arena arena = {.base = pages->regions.base, .stride = sizeof(struct region)};
    int64_t count = rb_check(&arena, &pages->by_address, pages->region_count), regions = 0;
    uintptr_t end = 0;
    EACH_REGION (pages, id)
        regions++;
    expect(report, "regions by address", (uint64_t)count, (uint64_t)regions);
    if (report->error)
        return;
    for (uint32_t at = rb_first(&arena, &pages->by_address); at != RB_NONE;
         at = rb_next(&arena, at)) {
        if (region_at(pages, at)->address < end)
            complain(report, "region begins inside another one", region_at(pages, at)->address,
                     end);
        end = region_at(pages, at)->address + bytes_of(region_at(pages, at)->n);
    }
}

static void check_pages(const struct pages *pages, struct report *report)
{
    struct census census = {0};
    uint64_t registered = 0;
    EACH_REGION (pages, id) {
        count_region(pages, id, &census, report);
        registered += region_at(pages, id)->n;
    }
    expect(report, "registered pages", pages->registered, registered);
    check_addresses(pages, report);
    expect_census(report, pages->pages_in, &census);
}

static void check_buckets(const struct pages *pages, struct report *report)
{
    uint64_t waiting = 0;
    for (uint64_t i = 0; i < pages->candidates.buckets; i++)
        for (uint32_t id = pages->candidates.heads[i];
             id != NO_PAGE && waiting <= pages->pages_in[PAGE_WAITING]; waiting++) {
            expect(report, "state of a page in a bucket", page_state(page_record(pages, id)),
                   PAGE_WAITING);
            id = page_record(pages, id)->link;
        }
    expect(report, "pages in buckets", waiting, pages->pages_in[PAGE_WAITING]);
}

static void check_unstable(const struct pages *pages, struct report *report)
{
    struct rb_arena arena = {.base = pages->candidates.nodes.base, .stride = sizeof(struct unode)};
    int64_t paired = 0;
    for (int tree = 0; tree < MAX_NODES; tree++) {
        int64_t count =
            rb_check(&arena, &pages->candidates.trees[tree], pages->candidates.node_count);
        if (count < 0) {
            complain(report, "unstable tree is no red-black tree", (uint64_t)tree, 0);
            return;
        }
        paired += count;
        for (uint32_t at = rb_first(&arena, &pages->candidates.trees[tree]); at != RB_NONE;
             at = rb_next(&arena, at)) {
            uint32_t page = ((struct unode *)arena_at(&pages->candidates.nodes, at))->page;
            expect(report, "node of a page in the unstable tree", page_record(pages, page)->link,
                   at);
        }
    }
    expect(report, "pages in unstable trees", (uint64_t)paired, pages->pages_in[PAGE_PAIRED]);
}

struct frames_seen {
    struct report *report;
    struct store *read; /* whose bytes are looked at as well, or NULL */
    uint64_t live, shared, stale, sharers, chains, dups;
};

/* Indices that a file says may lead anywhere: a chain has no more frames than there are. */
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

/* Frames that are being filled have sharers before they are in a tree. */
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
            if (frame->state != FRAME_FILLING)
                continue;
            seen->sharers += frame->sharers;
            seen->shared += frame->sharers != 0;
        }
        expect(seen->report, "frames in use", store->ids[node].state->used, used);
    }
    expect(seen->report, "live frames that are in a tree", seen->live, live);
}

static void check_frames(const struct store *store, struct frames_seen *seen)
{
    const struct store_head *head = store->head;
    struct report *report = seen->report;
    for (int tree = 0; tree < store->nodes; tree++)
        if (stable_walk(store, tree, see_chain, seen) < 0)
            complain(report, "stable tree is no red-black tree", (uint64_t)tree, 0);
    see_new_frames(store, seen);
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
    uint32_t end = store->head->slots_end; /* after the slots: others may take some meanwhile */
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

int ksmpy_check(ksmpy_engine *engine, char *text, size_t size)
{
    struct report report = {.text = text, .size = size};
    int error = engine_lock_with_store(engine); /* or somebody may make the index anew meanwhile */
    if (error)
        return error;
    check_pages(&engine->pages, &report);
    check_buckets(&engine->pages, &report);
    check_unstable(&engine->pages, &report);
    struct frames_seen seen = {.report = &report, .read = &engine->pages.store};
    check_frames(&engine->pages.store, &seen);
    if (engine->pages.store.shared)
        check_counts(&engine->pages.store, &report);
    else
        expect(&report, "sharers of all frames", seen.sharers, engine->pages.pages_in[PAGE_SHARED]);
    store_look_away(&engine->pages.store, true);
    engine_unlock_with_store(engine);
    return report.error;
}

#ifdef KSMPY_DEBUG
void check_step(ksmpy_engine *engine)
{
    char text[256] = "";
    if (!engine->pages.forked && ksmpy_check(engine, text, sizeof text) == -EUCLEAN) {
        fprintf(stderr, "ksmpy: the engine's structures are not sound: %s\n", text);
        abort();
    }
}
#endif
