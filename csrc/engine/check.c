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
#include "base/report.h"
#include "engine/locks.h"
#include "merge/plan.h"
#include "os/arena.h"
#include "pages/candidates.h"
#include "pages/pages.h"
#include "store/check.h"
#include "store/layout.h"
#include "store/pool.h"

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

static void check_chunks(const struct pages *pages, const struct region *region,
                         struct report *report)
{
    for (uint64_t first = 0; first < region->n; first += CHUNK) {
        uint64_t end = least(first + CHUNK, region->n), unsettled = 0;
        for (uint64_t i = first; i < end; i++)
            unsettled += is_unsettled(page_state(page_record(pages, region->base + (uint32_t)i)));
        expect(report, "unsettled pages of a chunk",
               chunk_of(pages, region->base + (uint32_t)first)->unsettled, unsettled);
    }
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
    check_chunks(pages, region, report);
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
    uint32_t first;
    for (uint64_t i = 0; candidates_bucket(pages, i, &first); i++)
        for (uint32_t id = first; id != NO_PAGE && waiting <= pages->pages_in[PAGE_WAITING];
             waiting++) {
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

/* The store's lock keeps other processes from rebuilding the index while it is checked. */
static int check_locked(ksmpy_engine *engine, char *text, size_t size)
{
    struct report report = {.text = text, .size = size};
    check_pages(&engine->pages, &report);
    check_buckets(&engine->pages, &report);
    check_unstable(&engine->pages, &report);
    uint64_t sharers;
    store_report(&engine->pages.store, &report, &sharers);
    if (!engine->pages.store.shared)
        expect(&report, "sharers of all frames", sharers,
               engine->pages.pages_in[PAGE_SHARED] + plan_joined(&engine->merger.plan));
    return report.error;
}

int ksmpy_check(ksmpy_engine *engine, char *text, size_t size)
{
    int error = engine_lock_with_store(engine);
    if (error)
        return error;
    error = check_locked(engine, text, size);
    engine_unlock_with_store(engine);
    return error;
}

#ifdef KSMPY_DEBUG
/*
 * What need not wait for a store that somebody else keeps locked must not wait for its check either.
 */
void check_step(ksmpy_engine *engine)
{
    char text[256] = "";
    if (engine_try_lock_with_store(engine))
        return;
    int error = check_locked(engine, text, sizeof text);
    engine_unlock_with_store(engine);
    if (error == -EUCLEAN) {
        fprintf(stderr, "ksmpy: the engine's structures are not sound: %s\n", text);
        abort();
    }
}
#endif
