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
#include <errno.h>

#include "base/pages.h"
#include "engine/engine.h"
#include "ksmpy.h"
#include "store/store.h"

#define SMALL_BLOCK 16 /* frames that a stretch may get which seems to be long enough for them */
#define SAMPLES_AHEAD 256 /* pages that are read to see how long a stretch goes on */

/* As many as the kernel would take for so many pages, of which the last one may be left alone. */
static uint64_t frames_for(const ksmpy_engine *engine, uint64_t pages)
{
    uint64_t sharing = engine->knobs[KSMPY_KNOB_MAX_PAGE_SHARING];
    return pages / sharing + (pages % sharing > 1);
}

/* Will the pass take this page into the stretch, as far as is known? It comes later in the region. */
static bool will_join(const ksmpy_engine *engine, uint32_t page, uint32_t later)
{
    const struct cursor *cursor = &engine->cursor;
    const struct page *record = page_record(engine, later);
    uint64_t at = later - region_at(engine, cursor->region)->base - cursor->window;
    if (page_state(record) == PAGE_SHARED)
        return false;
    if (!cursor->eager && engine->tracked && at < cursor->window_n && has_bit(cursor->written, at))
        return false;
    if (!cursor->eager && !engine->tracked &&
        (page_state(record) == PAGE_NEW || page_sum(record) != page_sum(page_record(engine, page))))
        return false;
    return compare_live((const void *)page_address(engine, page),
                        (const void *)page_address(engine, later)) == 0;
}

/* How far pages equal to this one go on from a later one, of at most max. */
static uint64_t equal_ahead(const ksmpy_engine *engine, uint32_t page, uint32_t from, uint64_t max)
{
    const struct region *region = region_at(engine, region_of(engine, page));
    uint64_t rest = region->base + region->n - from, equal = 0;
    uint64_t end = least(max, rest), step = 1 + max / SAMPLES_AHEAD;
    for (uint64_t i = 0; i < end && will_join(engine, page, from + (uint32_t)i); i += step)
        equal = i + 1;
    return equal;
}

static uint64_t frames_with_bytes_of(ksmpy_engine *engine, uint32_t page)
{
    const struct page *record = page_record(engine, page);
    int tree = tree_of(engine, page_node(record));
    if (!store_lock(&engine->store))
        return 0;
    uint64_t count = stable_count(&engine->store, tree, page_sum(record),
                                  (const void *)page_address(engine, page));
    store_unlock(&engine->store);
    return count;
}

/*
 * For n pages, and for more as far as the stretch seems to go on: beyond a small block a wrong
 * guess makes at most twice the frames that are needed, as those there were before are full.
 */
static uint64_t block_length(ksmpy_engine *engine, uint32_t page, uint64_t n)
{
    uint64_t frames = frames_for(engine, n), most = frames_with_bytes_of(engine, page) + 2 * frames;
    most = most > SMALL_BLOCK ? most : SMALL_BLOCK;
    uint64_t power = (uint64_t)1 << (63 - __builtin_clzll(least(most, n)));
    if (power <= frames) /* powers of 2 fit into what is merged at once */
        return frames;
    uint64_t pages = power * engine->knobs[KSMPY_KNOB_MAX_PAGE_SHARING];
    pages = n + equal_ahead(engine, page, page + (uint32_t)n, pages - least(n, pages));
    uint64_t longer = least(power, frames_for(engine, pages));
    return longer > frames ? longer : frames;
}

/* The first pages of the stretch become frames in a row; how many were dealt with. */
static int64_t onto_new_block(ksmpy_engine *engine, uint32_t page, uint64_t n)
{
    uint64_t frames = block_length(engine, page, n);
    if (!budget_allows(engine, frames, 2)) {
        budget_refuse(engine, page, n, frames);
        return -EDQUOT;
    }
    int error = promote(engine, page, &frames);
    return error ? error : (int64_t)frames;
}

/* After the frame of the page before, so that the row goes on. */
static uint32_t next_frame(const ksmpy_engine *engine, uint32_t page)
{
    bool first = page == region_at(engine, region_of(engine, page))->base;
    return first || !is_shared(engine, page - 1) ? NO_FRAME
                                                 : page_record(engine, page - 1)->link + 1;
}

/* Onto frames in a row that have room; how many pages were dealt with, 0: there are none. */
static int64_t onto_frames(ksmpy_engine *engine, uint32_t frame, uint32_t page, uint64_t n)
{
    struct store *store = &engine->store;
    const struct frame *record = frame_at(store, frame);
    uint64_t length = n;
    if (!store_lock(store))
        return store_why_not(store);
    uint32_t first = stable_find_row(store, record->tree, record->sum, frame_bytes(store, frame),
                                     next_frame(engine, page), &length);
    store_unlock(store);
    if (first == NO_FRAME)
        return 0;
    if (!budget_allows(engine, length, 2)) {
        budget_refuse(engine, page, n, length);
        return -EDQUOT;
    }
    merge_onto_frames(engine, page, first, length);
    return (int64_t)length;
}

/* A frame of pages [page, +n) with the bytes of the stretch: some may have been written since. */
static uint32_t frame_of_any(const ksmpy_engine *engine, uint32_t page, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        const struct page *record = page_record(engine, page + (uint32_t)i);
        if (page_state(record) == PAGE_SHARED &&
            frame_at(&engine->store, record->link)->sum == page_sum(record))
            return record->link;
    }
    return NO_FRAME;
}

static uint32_t find_any(ksmpy_engine *engine, uint32_t page)
{
    const struct page *record = page_record(engine, page);
    int tree = tree_of(engine, page_node(record));
    if (!store_lock(&engine->store))
        return NO_FRAME;
    uint32_t frame = stable_find(&engine->store, tree, page_sum(record),
                                 (const void *)page_address(engine, page), NO_FRAME);
    store_unlock(&engine->store);
    return frame;
}

/* A page that is left when all frames are full is looked up again in the next pass. */
void merge_equal(ksmpy_engine *engine, struct run run)
{
    uint32_t page = run.page, frame = find_any(engine, page);
    int64_t done = 0;
    for (uint64_t left = run.n; left; left -= (uint64_t)done, page += (uint32_t)done) {
        done = frame == NO_FRAME ? 0 : onto_frames(engine, frame, page, left);
        if (!done && left > 1)
            done = onto_new_block(engine, page, left);
        if (done < 0)
            count_refusal(engine, (int)done, left);
        if (done <= 0)
            break;
        if (frame == NO_FRAME)
            frame = frame_of_any(engine, page, (uint64_t)done);
    }
    settle_run(engine, run.page, page - run.page);
}
