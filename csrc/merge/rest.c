#include "merge/rest.h"

#include "base/pages.h"
#include "pages/pages.h"
#include "pages/records.h"
#include "store/announce.h"
#include "store/frames.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/pool.h"
#include "store/store.h"

void rest_begins_after(struct run *run, uint64_t n)
{
    run->page += (uint32_t)n;
    run->target += (uint32_t)n;
    run->n -= n;
    run->promoted -= least(run->promoted, n);
}

/*
 * Whether the pages became frames or not: other processes must not go on waiting for them.
 */
void rest_settle_claims(struct pages *pages, uint32_t page, uint64_t n)
{
    struct store *store = &pages->store;
    bool locked = n && store_lock(store);
    for (uint32_t id = page; id < page + n; id++) {
        const struct page *record = page_record(pages, id);
        announcement_settle(store, tree_of(pages, page_node(record)), page_sum(record),
                            page_state(record) == PAGE_SHARED);
    }
    if (locked)
        store_unlock(store);
}

void rest_shorten(struct pages *pages, struct run *run, uint64_t n)
{
    uint64_t left = run->n - least(run->n, n);
    uint32_t first = run->page + (uint32_t)n;
    run->n -= left;
    run->promoted = least(run->promoted, run->n);
    if (left && run->kind == RUN_ALONE)
        rest_settle_claims(pages, first, left);
    if (left && run->kind == RUN_UNMERGE) /* what was written is told only once */
        mark_untracked(pages, first, left);
}

static bool is_free(const struct pages *pages, uint32_t id)
{
    const struct page *page = page_record(pages, id);
    return page_state(page) == PAGE_SEEN && !page_is_planned(page);
}

static int tree_of_page(const struct pages *pages, uint32_t id)
{
    return tree_of(pages, page_node(page_record(pages, id)));
}

/* The page's equal either waits still, or has become a frame in an earlier slice. */
static bool has_equal(const struct pages *pages, const struct run *run, uint64_t i)
{
    uint32_t page = run->page + (uint32_t)i, target = run->target + (uint32_t)i;
    return i < run->promoted ||
           (page_waits(page_record(pages, target)) &&
            page_sum(page_record(pages, target)) == page_sum(page_record(pages, page)) &&
            tree_of_page(pages, target) == tree_of_page(pages, page));
}

static bool has_frame(const struct pages *pages, const struct run *run, uint64_t i)
{
    uint32_t page = run->page + (uint32_t)i, frame = run->target + (uint32_t)i;
    return frame_is_live(&pages->store, frame) &&
           frame_at(&pages->store, frame)->sum == page_sum(page_record(pages, page)) &&
           frame_at(&pages->store, frame)->tree == tree_of_page(pages, page);
}

static bool goes_on(const struct pages *pages, const struct run *run, uint64_t i)
{
    uint32_t page = run->page + (uint32_t)i;
    bool same_tree = tree_of_page(pages, page) == tree_of_page(pages, run->page);
    switch (run->kind) {
    case RUN_UNMERGE:
        return is_shared(pages, page);
    case RUN_EQUAL: /* its first page may be one that waits */
        return same_tree && (is_free(pages, page) || page_waits(page_record(pages, page)));
    case RUN_FRAME:
        return is_free(pages, page) && has_frame(pages, run, i);
    case RUN_PAGE:
        return is_free(pages, page) && has_equal(pages, run, i);
    default:
        return same_tree && is_free(pages, page);
    }
}

/* Their regions are there: a run ends with the first of them that goes. */
void rest_revise(struct pages *pages, struct run *run)
{
    uint64_t n = 0;
    if (!run->n)
        return;
    bool leaves = region_is_left_alone(region_at(pages, region_of(pages, run->page))) ||
                  (run->kind == RUN_PAGE &&
                   region_is_left_alone(region_at(pages, region_of(pages, run->target))));
    while (!leaves && n < run->n && goes_on(pages, run, n))
        n++;
    rest_shorten(pages, run, n);
}

void rest_give_frames_back(struct store *store, struct run *run)
{
    if (run->unfilled < run->taken_end)
        store_give_back(store, run->unfilled, run->taken_end - run->unfilled);
    run->taken = run->unfilled = run->taken_end = 0;
    run->raw = false;
}
