/*
 * One pass over the regions, in slices.
 *
 * The scanner visits pages in order.  For each it decides, from the page's
 * state and from what the page tables say was written, whether to pass it over
 * or to look it up in the index; what is found is collected into runs, which
 * merge/merge.c carries out.  A checksum decides only where to look.
 *
 * Differences to the kernel's scanner that can be seen from outside:
 *  - with write tracking, a page that was not written and is settled costs
 *    nothing and counts as skipped; so does, in the background, one in memory
 *    that is written all over again and again;
 *  - a page that smart_scan passes over stays in the index, so it is still
 *    counted as unshared.
 */
#include "scan/scan.h"

#include <errno.h>

#include "base/pages.h"
#include "merge/bar.h"
#include "merge/budget.h"
#include "merge/lonely.h"
#include "merge/merger.h"
#include "merge/plan.h"
#include "merge/refusal.h"
#include "merge/run.h"
#include "merge/unmerge.h"
#include "os/arena.h"
#include "os/clock.h"
#include "pages/candidates.h"
#include "pages/lost.h"
#include "pages/pages.h"
#include "pages/peers.h"
#include "pages/pins.h"
#include "pages/records.h"
#include "scan/ahead.h"
#include "scan/chunk_plan.h"
#include "scan/collect.h"
#include "scan/lookup.h"
#include "scan/migrate.h"
#include "scan/scanner.h"
#include "scan/window.h"
#include "store/frames.h"
#include "store/view.h"

#define SLICE_VISITED 8192 /* pages passed over before other threads get the lock */
#define AGE_MAX 15 /* what a page's record has bits for; skips_of() is the same from 9 on */
/*
 * After so many ns a slice ends at the next huge page, after CUT times as long anywhere.  The run
 * that is being collected goes on in the next one: the huge pages of its frames are asked for together.
 */
#define LONG_SLICE_NS 4000000
#define CUT 8

/* ---- one page ---- */

/* Visits to skip by age: the kernel's skip_age(), admin-guide/mm/ksm "smart_scan". */
static unsigned skips_of(unsigned age)
{
    return age <= 3 ? 1 : age <= 5 ? 2 : age <= 8 ? 4 : 8;
}

/*
 * Is this visit to be skipped?  The page's age before the visit decides that, and the visit raises
 * it, as the kernel does it.
 */
static bool smart_skip(const struct pages *pages, struct page *page)
{
    if (!pages->knobs[KSMPY_KNOB_SMART_SCAN])
        return false;
    unsigned age = page_age(page);
    if (age < AGE_MAX)
        page_set_age(page, age + 1);
    if (age < ALWAYS_VISITED)
        return false;
    unsigned skip = page_skip(page);
    page_set_skip(page, skip ? skip - 1 : skips_of(age));
    return skip != 0;
}

static void pass_over(struct scanner *scanner, uint64_t n)
{
    scanner->skipped += n;
    scanner->merger->result->skipped += n;
}

static void count_scanned(struct scanner *scanner)
{
    scanner->scanned++;
    scanner->merger->result->scanned++;
}

/* Deals with a page that was written, as tracking says: its owner has changed what we know. */
static void visit_written(struct scanner *scanner, uint32_t id, bool zero, bool eager)
{
    enum page_state state = page_state(page_record(scanner->pages, id));
    if (zero) {
        page_withdraw(scanner->pages, id);
        if (state != PAGE_ZERO)
            page_become(scanner->pages, id, PAGE_HOLE, NO_INDEX);
        pass_over(scanner, 1);
        return;
    }
    count_scanned(scanner);
    page_withdraw(scanner->pages, id);
    page_become(scanner->pages, id, PAGE_SEEN, NO_INDEX);
    if (eager)
        look_up(scanner, id, true, true);
    else
        scanner->merger->result->volatiles++;
}

static void visit_tracked(struct scanner *scanner, uint32_t id, bool written, bool zero, bool eager)
{
    struct page *page = page_record(scanner->pages, id);
    enum page_state state = page_state(page);
    if (written) {
        visit_written(scanner, id, zero, eager);
    } else if (!is_to_be_looked_up(&scanner->merger->budget, state) ||
               smart_skip(scanner->pages, page)) {
        pass_over(scanner, 1);
        if (state == PAGE_REFUSED)
            count_refusal(scanner->merger, -EDQUOT, 1);
    } else {
        count_scanned(scanner);
        look_up(scanner, id, false, eager);
    }
}

static void visit_untracked(struct scanner *scanner, uint32_t id, bool anonymous, bool eager)
{
    struct page *page = page_record(scanner->pages, id);
    enum page_state state = page_state(page);
    bool on_zero_page = state == PAGE_ZERO || state == PAGE_HOLE;
    if (on_zero_page && !anonymous && page_is_zero(scanner->pages, id)) {
        pass_over(scanner, 1);
        return;
    }
    if (on_zero_page)
        page_become(scanner->pages, id, PAGE_NEW, NO_INDEX);
    if (smart_skip(scanner->pages, page)) {
        pass_over(scanner, 1);
        return;
    }
    count_scanned(scanner);
    look_up(scanner, id, false, eager);
}

static void visit(struct scanner *scanner, const struct region *region, uint64_t i, bool eager)
{
    uint32_t id = region->base + (uint32_t)i;
    const struct window *window = &scanner->window;
    uint64_t at = i - window->first;
    bool written = has_bit(window->written, at), zero = has_bit(window->zero, at);
    if (page_is_planned(page_record(scanner->pages, id))) {
        pass_over(scanner, 1);
    } else if (is_shared(scanner->pages, id)) {
        if (has_bit(window->copied, at)) {
            count_scanned(scanner);
            scanner->merger->result->unmerged += collect(scanner, RUN_UNMERGE, id, NO_INDEX);
        } else {
            pass_over(scanner, 1);
        }
    } else if (scanner->pages->tracked) {
        visit_tracked(scanner, id, written, zero, eager);
    } else {
        visit_untracked(scanner, id, written, eager);
    }
}

/* The visit came to nothing: the next one finds the page as this one did. */
static void unvisit(struct scanner *scanner, uint32_t id, const struct page *before)
{
    struct page *page = page_record(scanner->pages, id);
    enum page_state was = page_state(before);
    bool known = was == PAGE_SEEN || was == PAGE_REFUSED || page_waits(before);
    if (was == PAGE_SHARED)
        return;
    page_set_sum(page, page_sum(before));
    page_set_age(page, page_age(before));
    page_set_skip(page, page_skip(before));
    page_become(scanner->pages, id, known ? PAGE_SEEN : PAGE_NEW, NO_INDEX);
}

/* false: the run before it is not finished, and the page is to be visited again. */
static bool visit_at_cursor(struct scanner *scanner, const struct region *region, bool eager)
{
    struct ksmpy_scan_result *result = scanner->merger->result;
    uint32_t id = region->base + (uint32_t)scanner->window.at;
    struct page before = *page_record(scanner->pages, id);
    uint64_t scanned = result->scanned, volatiles = result->volatiles;
    visit(scanner, region, scanner->window.at, eager);
    bool taken = is_taken(scanner->pages, id) && page_state(&before) != PAGE_SHARED;
    if (!scanner->unfinished || taken)
        return true;
    unvisit(scanner, id, &before);
    scanner->scanned -= result->scanned - scanned;
    result->scanned = scanned;
    result->volatiles = volatiles;
    return false;
}

static bool any_bit(const uint64_t *bits, uint64_t first, uint64_t end)
{
    for (uint64_t i = first; i < end; i = (i | 63) + 1) {
        uint64_t rest = end - i < 64 - i % 64 ? end - i : 64 - i % 64;
        uint64_t mask = rest == 64 ? UINT64_MAX : (((uint64_t)1 << rest) - 1) << i % 64;
        if (bits[i / 64] & mask)
            return true;
    }
    return false;
}

static bool any_changed(const struct window *window, uint64_t i, uint64_t end)
{
    uint64_t from = i - window->first, to = end - window->first;
    return any_bit(window->written, from, to) || any_bit(window->copied, from, to);
}

#define BLOCK 64 /* pages passed over together where a part of their chunk was written */

/*
 * How many pages from i on a pass has nothing to do with: those to the end of their chunk or, if
 * some of the chunk was written, to the end of their block; or 0.  Of a chunk that is left alone
 * those to its end.
 */
static uint64_t at_rest(const struct scanner *scanner, const struct region *region, uint64_t i)
{
    const struct window *window = &scanner->window;
    uint64_t last = window->first + window->n, end = least((i | (CHUNK - 1)) + 1, last);
    if (window->left_alone >> (i - window->first) / CHUNK & 1)
        return end - i;
    if (i % BLOCK || !scanner->pages->tracked ||
        chunk_of(scanner->pages, region->base + (uint32_t)i)->unsettled)
        return 0;
    if (any_changed(window, i, end))
        end = least((i | (BLOCK - 1)) + 1, last);
    return any_changed(window, i, end) ? 0 : end - i;
}

/* ---- the pass ---- */

static void end_pass(struct scanner *scanner)
{
    scanner->pages->full_scans++;
    scanner->merger->result->full++;
    pins_check(scanner->pages);
    store_reap(&scanner->pages->store);
    frames_follow_nodes(scanner->pages);
    store_look_away(&scanner->pages->store, true);
    chunk_plan_end_pass(scanner);
    window_reset(scanner);
}

/* Goes on with the next region.  Behind the last one the pass ends, unless pages are planned. */
static void next_region(struct scanner *scanner)
{
    struct window *window = &scanner->window;
    struct region *region = region_at(scanner->pages, window->region);
    region->unsure = false;
    window->region = region->next;
    window->at = 0;
    window->n = 0;
    if (window->region == NO_REGION && plan_is_empty(&scanner->merger->plan))
        end_pass(scanner);
}

#define CLOCK_EVERY 16 /* one in so many visits looks at the clock */

/*
 * Has the slice taken so long that it is to end before the page at this address?  Never before the
 * first visit, so that each slice gets on; the clock is read at the start of each huge page, too.
 */
static bool takes_long(uint64_t begin, uint64_t visited, uintptr_t address)
{
    bool huge = address % bytes_of(HUGE_PAGES) == 0;
    if (!visited || (!huge && visited % CLOCK_EVERY != CLOCK_EVERY - 1))
        return false;
    uint64_t took = os_now_ns() - begin;
    return took > LONG_SLICE_NS && (huge || took > CUT * LONG_SLICE_NS);
}

/* Forgets what was learned in the slice before: others have had the lock since. */
static void begin_slice(struct scanner *scanner, const struct region *region, uint64_t max_pages,
                        bool eager)
{
    struct window *window = &scanner->window;
    scanner->ahead.n = window->holes_n = 0;
    scanner->ahead.end = region->base + (uint32_t)least(window->at + max_pages, region->n);
    scanner->unreadable = false;
    if (eager && !window->eager)
        window_turn_eager(scanner);
}

/* A pass leaves a region whose last run is over. */
static void leave_finished_region(struct scanner *scanner)
{
    const struct window *window = &scanner->window;
    if (window->region == NO_REGION || scanner->run.n)
        return;
    const struct region *region = region_at(scanner->pages, window->region);
    if (window->at >= region->n || region_is_left_alone(region))
        next_region(scanner);
}

/* What each slice has to know anew; the run that the one before has left comes first. */
static void begin_any_slice(struct scanner *scanner)
{
    scanner->merger->slice_began_ns = os_now_ns();
    bar_ask_again(scanner->merger);
    follow_removals(scanner->merger);
    take_run_up(scanner);
}

/* stays: the run that is being collected goes on in the next slice. */
static void end_slice(struct scanner *scanner, bool stays)
{
    if (!scanner->unfinished && !stays)
        carry_out(scanner);
    plan_make_frames(scanner->merger);
    if (scanner->unreadable)
        check_lost_region(scanner->pages, scanner->window.region);
    store_look_away(&scanner->pages->store, false);
    store_flush(&scanner->pages->store);
    leave_finished_region(scanner);
}

bool scan_owes(const struct scanner *scanner)
{
    return scanner->run.n || !plan_is_empty(&scanner->merger->plan);
}

static void settle_plan(struct scanner *scanner)
{
    uint64_t deadline = scanner->merger->slice_began_ns + SLICE_NS, n;
    uint32_t page;
    bool more;
    do {
        more = plan_step(scanner->merger, &page, &n);
        window_pages_merged(scanner, page, n);
    } while (more && os_now_ns() < deadline && !merger_is_awaited(scanner->merger));
    if (!more) /* before that, frames are read again and again, in no order */
        store_look_away(&scanner->pages->store, false);
    store_flush(&scanner->pages->store);
    if (!more && scanner->window.begun && scanner->window.region == NO_REGION)
        end_pass(scanner);
}

void scan_settle_slice(struct scanner *scanner)
{
    begin_any_slice(scanner);
    if (scanner->run.n && !scanner->unfinished)
        carry_out(scanner);
    leave_finished_region(scanner);
    if (!scanner->run.n && !plan_is_empty(&scanner->merger->plan))
        settle_plan(scanner);
}

void scan_drop(struct scanner *scanner)
{
    leave_run(scanner);
    plan_drop(scanner->merger);
}

/* Looks at pages until the slice is over; false: the run that is being collected goes on behind it. */
static bool visit_pages(struct scanner *scanner, const struct region *region, uint64_t max_pages,
                        bool eager)
{
    struct window *window = &scanner->window;
    const struct merger *merger = scanner->merger;
    uint64_t before = merger->result->scanned;
    for (uint64_t visited = 0; visited < SLICE_VISITED; visited++) {
        uint64_t scanned = merger->result->scanned - before;
        uintptr_t place =
            run_place(scanner->pages, &scanner->run, region->address + bytes_of(window->at));
        bool at_start = run_starts_at(place);
        if (window->at >= region->n || region_is_left_alone(region) || scanned >= max_pages ||
            (scanned && at_start) || scanner->unreadable)
            break;
        if (takes_long(merger->slice_began_ns, visited, place) ||
            (visited && merger_is_awaited(merger)))
            return false;
        if (window->at >= window->first + window->n || window->at < window->first || !window->n)
            window_open(scanner, region, eager);
        uint64_t rests = at_rest(scanner, region, window->at);
        if (rests) {
            pass_over(scanner, rests);
            window->at += rests;
            visited += rests - 1;
            continue;
        }
        bool done = visit_at_cursor(scanner, region, eager);
        if (!done || scanner->pages->store.away)
            break;
        window->at++;
        if (scanner->unfinished)
            break;
    }
    return true;
}

void scan_slice(struct scanner *scanner, uint64_t max_pages, bool eager)
{
    const struct window *window = &scanner->window;
    plan_begin_slice(scanner->merger);
    if (plan_is_full(scanner->merger) || (scan_owes(scanner) && window->region == NO_REGION)) {
        scan_settle_slice(scanner);
        return;
    }
    if (window->region == NO_REGION) {
        end_pass(scanner);
        return;
    }
    const struct region *region = region_at(scanner->pages, window->region);
    begin_slice(scanner, region, max_pages, eager);
    begin_any_slice(scanner);
    bool over = scanner->unfinished || visit_pages(scanner, region, max_pages, eager);
    end_slice(scanner, !over);
}

bool scan_begin_slice(struct scanner *scanner, bool *begins)
{
    if (!follow_rules(scanner->pages))
        return false;
    *begins = !scanner->window.begun;
    if (*begins)
        window_reset(scanner);
    scanner->window.begun = true;
    return true;
}

void scan_begin_pass(struct scanner *scanner)
{
    budget_survey(&scanner->merger->budget);
    scanner->merger->result->lost += scanner->pages->lost - scanner->lost_told;
    scanner->lost_told = scanner->pages->lost;
    leave_lonely_frames(scanner->merger);
    scanner->window.heard = false;
}

bool scan_hear(struct scanner *scanner)
{
    struct window *window = &scanner->window;
    window->heard = window->heard || follow_events(scanner->pages);
    return window->heard;
}

void scan_end_left_over(struct scanner *scanner)
{
    if (scanner->window.begun && scanner->window.region == NO_REGION)
        end_pass(scanner);
}

void scan_restart(struct scanner *scanner)
{
    window_reset(scanner);
    scanner->merger->result->full = 0;
}
