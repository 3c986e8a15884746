/*
 * Pages onto frames, old and new.  New frames are filled from the live page before it is frozen; if
 * it is written meanwhile the comparison fails.
 */
#include "merge/onto.h"

#include <errno.h>

#include "base/pages.h"
#include "freeze/freezer.h"
#include "freeze/registration.h"
#include "merge/merger.h"
#include "merge/piece.h"
#include "os/guard.h"
#include "os/map.h"
#include "pages/pages.h"
#include "pages/records.h"
#include "store/extents.h"
#include "store/frames.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/pool.h"
#include "store/room.h"
#include "store/sharers.h"
#include "store/stable.h"
#include "store/store.h"

#define TRACKED_RUN 32 /* shortest run whose overlays are tracked */

/*
 * Takes the faults of later readers, of whom each would find 16 pages mapped by the one before it.
 */
static void fault_in(uintptr_t address, uint64_t n)
{
    guard_touch(address, address + bytes_of(n), bytes_of(FAULT_AROUND));
}

/* The pages up to the next huge one, of at most n. */
static uint64_t to_next_huge(const struct pages *pages, uint32_t page, uint64_t n)
{
    uint64_t rest = HUGE_PAGES - (page_address(pages, page) >> PAGE_SHIFT) % HUGE_PAGES;
    return least(n, rest);
}

/* Will one entry map all of a huge page's place, at the first touch? */
static bool is_mapped_at_once(const struct pages *pages, uint32_t page)
{
    uint32_t last = page + (uint32_t)HUGE_PAGES - 1;
    if (!is_shared(pages, page) || !is_shared(pages, last))
        return false;
    uint32_t frame = page_record(pages, page)->link;
    return frame % HUGE_PAGES == 0 && page_record(pages, last)->link == frame + HUGE_PAGES - 1 &&
           is_in_huge_extent(&pages->store, frame);
}

/*
 * All pages by one call: where writes are tracked the kernel maps one at a fault, which takes a reader
 * twice as long for each.  What one entry maps is left out: whoever reads it has one fault for 512 pages, and nobody is told
 * that it is resident before it is read.
 */
static void fault_in_overlays(const struct pages *pages, uint32_t page, uint64_t n)
{
    for (uint64_t i = 0, part; i < n; i += part) {
        uint32_t id = page + (uint32_t)i;
        uintptr_t address = page_address(pages, id);
        part = to_next_huge(pages, id, n - i);
        bool small = part < HUGE_PAGES || !is_mapped_at_once(pages, id);
        if (small && os_populate(address, part, false) < 0) /* before Linux 5.14 */
            fault_in(address, part);
    }
}

/* Short overlays are not worth a call, which takes as long as to look at 50 pages. */
static void track_overlays(struct merger *merger, uint32_t page, uint64_t n)
{
    if (n >= TRACKED_RUN &&
        freezer_track_overlay(&merger->fz, page_address(merger->pages, page), n) == 0)
        return;
    mark_untracked(merger->pages, page, n);
}

void track_merged(struct merger *merger, uint32_t page, uint64_t n)
{
    for (uint64_t i = 0, length; i < n; i += length) {
        uint32_t id = page + (uint32_t)i;
        length = pages_alike(merger->pages, id, n - i, PAGE_SHARED);
        if (is_shared(merger->pages, id))
            track_overlays(merger, id, length);
    }
}

void merge_onto_frames(struct merger *merger, uint32_t page, uint32_t frame, uint64_t n)
{
    struct piece piece;
    uint32_t start = page;
    for (uint64_t left = n, done; left; left -= done) {
        piece.page = page;
        piece.frame = frame;
        done = merge_piece(merger, &piece, left, false);
        page += (uint32_t)done;
        frame += (uint32_t)done;
    }
    fault_in_overlays(merger->pages, start, n); /* a fault maps nothing beyond its mapping */
}

/* Frames that one call has taken, and a part of them that is filled. */
struct batch {
    uint32_t taken, taken_end;
    uint32_t page, frame;
    uint64_t n;
    uint32_t onto[HUGE_PAGES]; /* for each page of the part, where it is to lie */
};

/*
 * Another process may have made a frame of the same bytes since this one looked for it.  Who comes
 * second goes there, if there is room: that frame, which is joined; or NO_FRAME.
 */
static uint32_t join_older(struct pages *pages, const struct batch *batch, uint64_t i, int tree)
{
    struct store *store = &pages->store;
    uint32_t frame = batch->frame + (uint32_t)i;
    uint32_t older =
        stable_find(store, tree, frame_at(store, frame)->sum, frame_bytes(store, frame), NO_FRAME);
    bool ours = older >= batch->taken && older < batch->taken_end;
    return older != NO_FRAME && !ours && store_join(store, older, 1) == 1 ? older : NO_FRAME;
}

/* With the lock held, and all new frames joined: which of them are needed goes into the index. */
static void choose_frames(struct pages *pages, struct batch *batch, int tree)
{
    struct store *store = &pages->store;
    for (uint64_t i = 0; i < batch->n; i++) {
        uint32_t frame = batch->frame + (uint32_t)i;
        uint32_t older = store->shared ? join_older(pages, batch, i, tree) : NO_FRAME;
        batch->onto[i] = older == NO_FRAME ? frame : older;
        if (older == NO_FRAME)
            continue;
        store_leave(store, frame);
        store_free(store, frame);
    }
    for (uint64_t i = 0; i < batch->n; i++)
        if (batch->onto[i] == batch->frame + (uint32_t)i)
            store_adopt(store, batch->onto[i], tree);
}

/*
 * Before anything is mapped, in one step with the look for older ones, so that no two processes
 * make frames of the same bytes.  A frame that nothing is mapped onto then is left, and freed.
 */
static int adopt_frames(struct pages *pages, struct batch *batch)
{
    struct store *store = &pages->store;
    int tree = tree_of(pages, page_node(page_record(pages, batch->page)));
    fault_in((uintptr_t)frame_bytes(store, batch->frame), batch->n);
    for (uint32_t frame = batch->frame; frame < batch->frame + batch->n; frame++) {
        frame_at(store, frame)->sum = store_sum(store, frame_bytes(store, frame));
        stable_prefetch(store, tree, frame_at(store, frame)->sum);
    }
    if (!store_lock(store))
        return store_why_not(store);
    int64_t joined = join_frames(pages, batch->frame, batch->n);
    if (joined > 0)
        choose_frames(pages, batch, tree);
    store_unlock(store);
    return joined < 0 ? (int)joined : 0;
}

static uint64_t row_from(const struct batch *batch, uint64_t i)
{
    uint64_t n = 1;
    while (i + n < batch->n && batch->onto[i + n] == batch->onto[i] + n)
        n++;
    return n;
}

/* The pages become the first sharers of filled frames, or sharers of older ones. */
static int promote_part(struct merger *merger, struct batch *batch)
{
    struct piece piece;
    int error = adopt_frames(merger->pages, batch);
    for (uint64_t i = 0, done; i < batch->n && !error; i += done) {
        piece.page = batch->page + (uint32_t)i;
        piece.frame = batch->onto[i];
        done = merge_piece(merger, &piece, row_from(batch, i), true);
    }
    return error;
}

static uint32_t take_frames(struct pages *pages, uint32_t page, uint64_t *n, bool in_step)
{
    int node = (int)page_node(page_record(pages, page));
    uint64_t number = page_address(pages, page) >> PAGE_SHIFT;
    return in_step ? store_take_in_step(&pages->store, node, number, n)
                   : store_take(&pages->store, node, n);
}

static int promote_onto(struct merger *merger, uint32_t page, uint64_t *n, bool in_step)
{
    struct store *store = &merger->pages->store;
    struct batch batch;
    uint64_t taken = *n;
    int64_t filled = 0;
    int error = 0;
    *n = 0;
    batch.taken = take_frames(merger->pages, page, &taken, in_step);
    if (batch.taken == NO_FRAME)
        return -ENOMEM;
    batch.taken_end = batch.taken + (uint32_t)taken;
    for (; *n < taken && !error; *n += error ? 0 : batch.n) {
        batch.page = page + (uint32_t)*n;
        batch.frame = batch.taken + (uint32_t)*n;
        batch.n = to_next_huge(merger->pages, batch.page, taken - *n);
        filled = store_fill(store, batch.frame,
                            (const void *)page_address(merger->pages, batch.page), batch.n);
        if (filled == -ENOSPC)
            store_fills_up(store);
        batch.n = filled > 0 ? (uint64_t)filled : 0;
        error = filled > 0 ? promote_part(merger, &batch) : (int)filled;
    }
    store_give_back(store, batch.taken + (uint32_t)*n, taken - *n);
    fault_in_overlays(merger->pages, page, *n);
    track_merged(merger, page, *n);
    return *n ? 0 : error;
}

int promote(struct merger *merger, uint32_t page, uint64_t *n)
{
    return promote_onto(merger, page, n, true);
}

int promote_row(struct merger *merger, uint32_t page, uint64_t *n)
{
    return promote_onto(merger, page, n, false);
}
