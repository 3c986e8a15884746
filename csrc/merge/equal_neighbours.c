/*
 * Neighbours that are equal to each other: constant arrays, padding, empty tables.
 *
 * On one frame they would take a mapping each.  So a stretch of them gets a block of as many frames
 * as max_page_sharing asks for, in a row, which is mapped again and again:
 *
 *   pages   | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 |    max_page_sharing 3: 3 mappings, not 9
 *   frames  | F  F+1 F+2| F  F+1 F+2| F  F+1 F+2|
 *
 * So a block takes max_page_sharing mappings, however long it is.  Where a stretch goes on beyond
 * what is merged at once, the next block is as long as all before it together: each doubling of
 * the data takes as many mappings as the one before.
 */
#include "merge/equal_neighbours.h"

#include <errno.h>

#include "base/pages.h"
#include "merge/budget.h"
#include "merge/merger.h"
#include "merge/onto_frames.h"
#include "merge/refusal.h"
#include "merge/rest.h"
#include "merge/run.h"
#include "os/guard.h"
#include "pages/pages.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/stable.h"
#include "store/store.h"

#define SMALL_BLOCK 64 /* frames that are made at once if a stretch seems long enough for them */
#define SAMPLES_AHEAD 256 /* pages that are read at most to see how long a stretch goes on */

/* How many frames the kernel would make for n equal pages; the last page may be left alone. */
static uint64_t frames_for(const struct pages *pages, uint64_t n)
{
    uint64_t sharing = pages->knobs[KSMPY_KNOB_MAX_PAGE_SHARING];
    return n / sharing + (n % sharing > 1);
}

/* Will the pass take the later page of the region into the stretch, as far as is known now? */
static bool will_join(const struct pages *pages, const struct outlook *outlook, uint32_t page,
                      uint32_t later)
{
    const struct page *record = page_record(pages, later);
    uint64_t at = later - outlook->first;
    if (page_state(record) == PAGE_SHARED)
        return false;
    if (!outlook->eager && pages->tracked && at < outlook->n && has_bit(outlook->written, at))
        return false;
    if (!outlook->eager && !pages->tracked &&
        (page_state(record) == PAGE_NEW || page_sum(record) != page_sum(page_record(pages, page))))
        return false;
    return compare_live((const void *)page_address(pages, page),
                        (const void *)page_address(pages, later)) == 0;
}

/* How many pages from a later one on seem to be equal to this one, by samples; at most max. */
static uint64_t equal_ahead(const struct pages *pages, const struct outlook *outlook, uint32_t page,
                            uint32_t from, uint64_t max)
{
    const struct region *region = region_at(pages, region_of(pages, page));
    uint64_t rest = region->base + region->n - from, equal = 0;
    uint64_t end = least(max, rest), step = 1 + max / SAMPLES_AHEAD;
    for (uint64_t i = 0; i < end && will_join(pages, outlook, page, from + (uint32_t)i); i += step)
        equal = i + 1;
    return equal;
}

/* How many frames there are with the bytes of a page, counted up to max. */
static uint64_t frames_with_bytes_of(struct pages *pages, uint32_t page, uint64_t max)
{
    const struct page *record = page_record(pages, page);
    int tree = tree_of(pages, page_node(record));
    if (!store_lock(&pages->store))
        return 0;
    uint64_t count = stable_count(&pages->store, tree, page_sum(record),
                                  (const void *)page_address(pages, page), max);
    store_unlock(&pages->store);
    return count;
}

/*
 * How many frames the next block gets: enough for n pages, and for more if the stretch seems to go
 * on.  A block longer than a small one is at most as long as all frames before it, which are full,
 * together: so a wrong guess makes at most twice the frames that are needed.
 */
static uint64_t block_length(struct pages *pages, const struct outlook *outlook, uint32_t page,
                             uint64_t n)
{
    uint64_t frames = frames_for(pages, n);
    uint64_t most = frames_with_bytes_of(pages, page, n) + 2 * frames;
    most = most > SMALL_BLOCK ? most : SMALL_BLOCK;
    uint64_t power = (uint64_t)1 << (63 - __builtin_clzll(least(most, n)));
    if (power <= frames) /* a block is a power of 2, so that blocks fill what is merged at once */
        return frames;
    uint64_t held = power * pages->knobs[KSMPY_KNOB_MAX_PAGE_SHARING];
    held = n + equal_ahead(pages, outlook, page, page + (uint32_t)n, held - least(n, held));
    uint64_t longer = least(power, frames_for(pages, held));
    return longer > frames ? longer : frames;
}

/*
 * Makes frames in a row of the stretch's first pages, or goes on with those that the slice before
 * has begun; how many pages were dealt with.
 */
static int64_t onto_new_block(struct merger *merger, struct run *run, const struct outlook *outlook)
{
    bool goes_on = run->unfilled < run->taken_end;
    uint64_t frames = goes_on ? least(run->n, run->taken_end - run->unfilled)
                              : block_length(merger->pages, outlook, run->page, run->n);
    if (!goes_on && !budget_allows(&merger->budget, frames, 2)) {
        budget_refuse(&merger->budget, run->page, run->n, frames);
        return -EDQUOT;
    }
    int error = promote_row(merger, run, run->page, &frames);
    return error ? error : (int64_t)frames;
}

/* The frame that follows that of the page before: on it the page makes no mapping of its own. */
static uint32_t next_frame(const struct pages *pages, uint32_t page)
{
    bool first = page == region_at(pages, region_of(pages, page))->base;
    return first || !is_shared(pages, page - 1) ? NO_FRAME : page_record(pages, page - 1)->link + 1;
}

/* Merges pages onto frames in a row that have room; how many, or 0 if there are no such frames. */
static int64_t onto_frames(struct merger *merger, uint32_t frame, uint32_t page, uint64_t n)
{
    struct store *store = &merger->pages->store;
    const struct frame *record = frame_at(store, frame);
    uint64_t length = n;
    if (!store_lock(store))
        return store_why_not(store);
    uint32_t first = stable_find_row(store, record->tree, record->sum, frame_bytes(store, frame),
                                     next_frame(merger->pages, page), &length);
    store_unlock(store);
    if (first == NO_FRAME)
        return 0;
    if (!budget_allows(&merger->budget, length, 2)) {
        budget_refuse(&merger->budget, page, n, length);
        return -EDQUOT;
    }
    return (int64_t)merge_onto_frames(merger, page, first, length);
}

/* A frame of one of the pages [page, +n) that still has the bytes of the stretch; or NO_FRAME. */
static uint32_t frame_of_any(const struct pages *pages, uint32_t page, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        const struct page *record = page_record(pages, page + (uint32_t)i);
        if (page_state(record) == PAGE_SHARED &&
            frame_at(&pages->store, record->link)->sum == page_sum(record))
            return record->link;
    }
    return NO_FRAME;
}

static uint32_t find_any(struct pages *pages, uint32_t page)
{
    const struct page *record = page_record(pages, page);
    int tree = tree_of(pages, page_node(record));
    if (!store_lock(&pages->store))
        return NO_FRAME;
    uint32_t frame = stable_find(&pages->store, tree, page_sum(record),
                                 (const void *)page_address(pages, page), NO_FRAME);
    store_unlock(&pages->store);
    return frame;
}

/* Merges the first pages of the run; how many were dealt with. */
static int64_t merge_some(struct merger *merger, struct run *run, const struct outlook *outlook,
                          uint32_t frame)
{
    bool goes_on = run->unfilled < run->taken_end;
    int64_t done = frame == NO_FRAME || goes_on ? 0 : onto_frames(merger, frame, run->page, run->n);
    return !done && (run->n > 1 || goes_on) ? onto_new_block(merger, run, outlook) : done;
}

/* A last page for which no frame has room is left alone, and looked up again in the next pass. */
void merge_equal(struct merger *merger, struct run *run, const struct outlook *outlook)
{
    uint32_t start = run->page, frame = find_any(merger->pages, start);
    int64_t done;
    do {
        uint32_t page = run->page;
        done = merge_some(merger, run, outlook, frame);
        if (done < 0)
            count_refusal(merger, (int)done, run->n);
        if (done > 0)
            rest_begins_after(run, (uint64_t)done);
        if (done > 0 && frame == NO_FRAME)
            frame = frame_of_any(merger->pages, page, (uint64_t)done);
    } while (done > 0 && run->n && !merger_is_awaited(merger));
    track_merged(merger, start, run->page - start);
    if (done <= 0)
        rest_shorten(merger->pages, run, 0);
}
