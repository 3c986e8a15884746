/* Looking a page up: who has its bytes? */
#include "scan/lookup.h"

#include <errno.h>

#include "base/pages.h"
#include "merge/plan.h"
#include "merge/refusal.h"
#include "merge/run.h"
#include "os/allocators.h"
#include "os/arena.h"
#include "os/pagemap.h"
#include "pages/candidates.h"
#include "pages/pages.h"
#include "pages/records.h"
#include "scan/ahead.h"
#include "scan/collect.h"
#include "scan/scanner.h"
#include "scan/window.h"
#include "store/announce.h"
#include "store/board.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/stable.h"
#include "store/store.h"

/*
 * The frame that a row goes on with is mostly there, and seen so without the lock.  Not while that is not
 * to be had: nothing is looked up then, and the slice ends.
 */
static uint32_t find_frame(struct pages *pages, uint32_t id, uint64_t sum, const void *bytes,
                           uint32_t preferred)
{
    int tree = tree_of(pages, page_node(page_record(pages, id)));
    if (!store_is_away(&pages->store) && stable_seems(&pages->store, tree, sum, preferred))
        return preferred;
    if (!store_lock(&pages->store))
        return NO_FRAME;
    uint32_t frame = stable_find(&pages->store, tree, sum, bytes, preferred);
    store_unlock(&pages->store);
    return frame;
}

/* Is it equal to the page before it in its region? */
static bool goes_on(const struct pages *pages, uint32_t id)
{
    return id != region_at(pages, region_of(pages, id))->base && are_equal(pages, id - 1, id);
}

/*
 * If pairs with this checksum are planned, all planned pairs get their frames now: the page may be
 * equal to such a pair, and has to find its frame.
 */
static bool make_frame_of(struct scanner *scanner, uint64_t sum)
{
    bool made = plan_has_pair_of(&scanner->merger->plan, sum);
    if (made)
        plan_make_frames(scanner->merger);
    return made;
}

/*
 * Looks for a frame with these bytes, and collects the page for it.  settled: the page was
 * unchanged for long enough that frames may be made of it and of equal pages behind it.
 */
static bool try_frame(struct scanner *scanner, uint32_t id, uint64_t sum, const void *bytes,
                      bool settled)
{
    uint32_t frame = find_frame(scanner->pages, id, sum, bytes,
                                run_wanted(scanner->pages, &scanner->run, RUN_FRAME, id));
    if (frame == NO_FRAME)
        return false;
    if (run_extends(scanner->pages, &scanner->run, RUN_FRAME, id, frame)) {
        scanner->run.n++;
        return true;
    }
    /* To carry out the pending run may fill that frame, or make a frame that is better. */
    bool merged = carry_out(scanner);
    if (scanner->unfinished || is_taken(scanner->pages, id))
        return true;
    const struct store *store = &scanner->pages->store;
    if (merged || !has_room(store, frame_at(store, frame)))
        frame = find_frame(scanner->pages, id, sum, bytes, NO_FRAME);
    if (frame == NO_FRAME)
        return false;
    collect_first(scanner, settled && goes_on(scanner->pages, id) ? RUN_EQUAL : RUN_FRAME, id,
                  frame);
    return true;
}

/* If the page before waits and has the same bytes, a stretch of equal pages begins. */
static bool try_neighbour(struct scanner *scanner, uint32_t id, uint64_t sum, const void *bytes)
{
    if (!goes_on(scanner->pages, id) || !page_waits(page_record(scanner->pages, id - 1)))
        return false;
    carry_out(scanner); /* the pending run may take either page, or make a frame with their bytes */
    if (scanner->unfinished)
        return true;
    make_frame_of(scanner, sum);
    if (is_taken(scanner->pages, id) || try_frame(scanner, id, sum, bytes, true))
        return true;
    if (!page_waits(page_record(scanner->pages, id - 1)))
        return false;
    collect_first(scanner, RUN_EQUAL, id - 1, NO_INDEX);
    scanner->run.n = 2;
    return true;
}

/* If another page has these bytes and waits, both of them will share a new frame. */
static bool try_candidate(struct scanner *scanner, uint32_t id, uint64_t sum, const void *bytes)
{
    if (try_neighbour(scanner, id, sum, bytes))
        return true;
    uint32_t other =
        candidate_find(scanner->pages, id, run_wanted(scanner->pages, &scanner->run, RUN_PAGE, id));
    if (other == NO_PAGE)
        return false;
    if (run_extends(scanner->pages, &scanner->run, RUN_PAGE, id, other)) {
        scanner->run.n++;
        return true;
    }
    bool merged = carry_out(scanner); /* the pending run may take that page */
    if (scanner->unfinished)
        return true;
    if (make_frame_of(scanner, sum) || merged) {
        if (is_taken(scanner->pages, id) || try_frame(scanner, id, sum, bytes, true))
            return true;
        other = candidate_find(scanner->pages, id, NO_PAGE);
    }
    if (other == NO_PAGE)
        return false;
    collect_first(scanner, RUN_PAGE, id, other);
    return true;
}

/* Is the page another process's as well, which fork has left it to?  Then neither has written. */
static bool is_left_by_fork(const struct scanner *scanner, uint32_t id)
{
    uint8_t kind;
    return os_pages(scanner->merger->fz.pagemap_fd, page_address(scanner->pages, id), 1, &kind) ==
               0 &&
           kind == OS_PAGE_COMMON;
}

/*
 * Nobody here has these bytes.  A page of another process may: then this one
 * becomes a frame's first sharer.  Else it waits.
 */
static void wait_or_go_ahead(struct scanner *scanner, uint32_t id, uint64_t sum, const void *bytes)
{
    struct store *store = &scanner->pages->store;
    int tree = tree_of(scanner->pages, page_node(page_record(scanner->pages, id)));
    /* A claim is for a page that can be collected. */
    if (store->shared && !run_extends(scanner->pages, &scanner->run, RUN_ALONE, id, NO_INDEX))
        carry_out(scanner);
    if (scanner->unfinished)
        return;
    enum announced announced = announcement_add(store, tree, sum, false);
    if (announced == ANNOUNCED_BY_KIN && !is_left_by_fork(scanner, id))
        announced = announcement_add(store, tree, sum, true);
    if (announced == ANNOUNCED_HERE && scanner->run.kind == RUN_ALONE && scanner->run.n) {
        carry_out(scanner); /* the pending run may have claimed this checksum, and make its frame */
        if (scanner->unfinished || is_taken(scanner->pages, id) ||
            try_frame(scanner, id, sum, bytes, true))
            return;
    }
    if (announced == ANNOUNCED_ELSEWHERE)
        collect(scanner, RUN_ALONE, id, NO_INDEX);
    else if (announced != ANNOUNCED_UNKNOWN)
        candidate_add(scanner->pages, id);
}

/*
 * Must the page not be merged, because of mremap?  mremap can make an overlay's mapping longer, and
 * the new part would show the frames that come next in the file.  It refuses a range of several
 * mappings (EFAULT), and then realloc() copies.  So memory that may be made longer must never be
 * one overlay from end to end.  Hence the last page of such a region is left alone, and the first
 * page of each block of malloc's in it, since blocks side by side are one mapping.
 */
static bool stays_apart(const struct region *region, uint64_t i, const void *bytes)
{
    return region->growing && (i + 1 == region->n || allocators_block_size(bytes));
}

static bool goes_to_zero_page(const struct scanner *scanner, uint64_t sum)
{
    return sum == scanner->pages->sum_of_zeros && scanner->pages->knobs[KSMPY_KNOB_USE_ZERO_PAGES];
}

/* Need a page that was looked up before, and has not changed, not be looked up again? */
static bool stays_as_it_is(struct scanner *scanner, const struct page *page, uint64_t sum)
{
    if (page_waits(page))
        return !goes_to_zero_page(scanner, sum); /* a page that is equal to it will find it */
    if (page_state(page) != PAGE_REFUSED || scanner->merger->budget.asks_again)
        return false;
    count_refusal(scanner->merger, -EDQUOT, 1);
    return true;
}

/*
 * Looks for equal pages.  The page's state is SEEN, and its record has the checksum.  If the run
 * that was pending is left unfinished nothing is decided, and the page is to be visited again.
 */
static void find_equal(struct scanner *scanner, uint32_t id, bool changed, bool eager)
{
    const void *bytes = (const void *)page_address(scanner->pages, id);
    const struct region *region = region_at(scanner->pages, region_of(scanner->pages, id));
    uint64_t sum = page_sum(page_record(scanner->pages, id));
    bool to_zero_page = goes_to_zero_page(scanner, sum);
    bool apart = !to_zero_page && stays_apart(region, id - region->base, bytes);
    bool settled = !changed || eager;
    make_frame_of(scanner, sum);
    bool equal = settled && !apart && run_extends(scanner->pages, &scanner->run, RUN_EQUAL, id, 0);
    if (!to_zero_page && !equal && !apart && try_frame(scanner, id, sum, bytes, settled))
        return;
    if (scanner->pages->store.away)
        return; /* the store's lock was not to be had: the page is looked up again later */
    scanner->merger->result->volatiles += changed;
    if (!settled || apart)
        return;
    if (equal)
        scanner->run.n++;
    else if (to_zero_page)
        collect(scanner, RUN_ZERO, id, NO_INDEX);
    else if (!try_candidate(scanner, id, sum, bytes))
        wait_or_go_ahead(scanner, id, sum, bytes);
}

void look_up(struct scanner *scanner, uint32_t id, bool changed, bool eager)
{
    struct page *page = page_record(scanner->pages, id);
    uint64_t sum = sum_of(scanner, id, eager);
    if (sum == UNREADABLE) {
        page_withdraw(scanner->pages, id);
        page_become(scanner->pages, id, PAGE_NEW, NO_INDEX);
        scanner->unreadable = true;
        return;
    }
    if (!scanner->pages->tracked)
        changed = page_state(page) == PAGE_NEW || page_sum(page) != sum;
    if (!changed && stays_as_it_is(scanner, page, sum))
        return;
    page_withdraw(scanner->pages, id);
    page_set_sum(page, sum);
    page_become(scanner->pages, id, PAGE_SEEN, NO_INDEX);
    if (sum == scanner->pages->sum_of_zeros && window_at_hole(scanner, id))
        page_become(scanner->pages, id, PAGE_HOLE, NO_INDEX);
    else
        find_equal(scanner, id, changed, eager);
}
