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
 *    nothing and counts as skipped;
 *  - a page that smart_scan passes over stays in the index, so it is still
 *    counted as unshared.
 */
#include <errno.h>
#include <string.h>

#include "base/checksum.h"
#include "base/pages.h"
#include "engine/engine.h"
#include "ksmpy.h"
#include "os/arena.h"
#include "os/clock.h"
#include "os/guard.h"
#include "store/store.h"

#define SLICE_SCANNED RUN_MAX /* pages looked at before other threads get the lock */
#define SLICE_VISITED 8192    /* the same for pages passed over */
#define ALWAYS_VISITED 3 /* visits of a page before smart_scan passes it over for the first time */
#define AGE_MAX 15
#define UNREADABLE                                                                                 \
    UINT64_MAX /* instead of a checksum: its owner has unmapped or protected the page */
#define LONG_SLICE_NS                                                                              \
    4000000 /* a slice ends with the huge page then, and at once after CUT times that */
#define CUT 8
#define LINES 8 /* cache lines of the next page that are asked for at the end of this one */

/* ---- one page ---- */

static uint32_t find_frame(ksmpy_engine *engine, uint32_t id, uint64_t sum, const void *bytes,
                           uint32_t preferred)
{
    int tree = tree_of(engine, page_node(page_record(engine, id)));
    if (!store_lock(&engine->store))
        return NO_FRAME;
    uint32_t frame = stable_find(&engine->store, tree, sum, bytes, preferred);
    store_unlock(&engine->store);
    return frame;
}

/* Is it equal to the page before? */
static bool goes_on(const ksmpy_engine *engine, uint32_t id)
{
    return id != region_at(engine, region_of(engine, id))->base && are_equal(engine, id - 1, id);
}

/* settled: new frames may be made of it, and of equal pages after it. */
static bool try_frame(ksmpy_engine *engine, uint32_t id, uint64_t sum, const void *bytes,
                      bool settled)
{
    uint32_t frame = find_frame(engine, id, sum, bytes, run_wanted(engine, RUN_FRAME, id));
    if (frame == NO_FRAME)
        return false;
    if (run_extends(engine, RUN_FRAME, id, frame)) {
        engine->run.n++;
        return true;
    }
    merge_run(engine); /* it may have filled that frame, or made a better one */
    if (is_shared(engine, id))
        return true;
    frame = find_frame(engine, id, sum, bytes, NO_FRAME);
    if (frame == NO_FRAME)
        return false;
    run_start(engine, settled && goes_on(engine, id) ? RUN_EQUAL : RUN_FRAME, id, frame);
    return true;
}

/* The page before waits, and has these bytes: a stretch of equal pages begins. */
static bool try_neighbour(ksmpy_engine *engine, uint32_t id, uint64_t sum, const void *bytes)
{
    if (!goes_on(engine, id) || !page_waits(page_record(engine, id - 1)))
        return false;
    merge_run(engine); /* it may have taken either of them, or made a frame with their bytes */
    if (is_shared(engine, id) || try_frame(engine, id, sum, bytes, true))
        return true;
    if (!page_waits(page_record(engine, id - 1)))
        return false;
    run_start(engine, RUN_EQUAL, id - 1, NO_INDEX);
    engine->run.n = 2;
    return true;
}

/* Another page has these bytes and waits: both of them will share a new frame. */
static bool try_candidate(ksmpy_engine *engine, uint32_t id, uint64_t sum, const void *bytes)
{
    if (try_neighbour(engine, id, sum, bytes))
        return true;
    uint32_t other = unstable_find(engine, id, run_wanted(engine, RUN_PAGE, id));
    if (other == NO_PAGE)
        return false;
    if (run_extends(engine, RUN_PAGE, id, other)) {
        engine->run.n++;
        return true;
    }
    merge_run(engine); /* it may have taken that page */
    if (is_shared(engine, id))
        return true;
    if (try_frame(engine, id, sum, bytes, true))
        return true;
    other = unstable_find(engine, id, NO_PAGE);
    if (other == NO_PAGE)
        return false;
    run_start(engine, RUN_PAGE, id, other);
    return true;
}

/*
 * Nobody here has these bytes.  A page of another process may: then this one
 * becomes a frame's first sharer.  Else it waits.
 */
static void wait_or_go_ahead(ksmpy_engine *engine, uint32_t id, uint64_t sum, const void *bytes)
{
    struct store *store = &engine->store;
    int tree = tree_of(engine, page_node(page_record(engine, id)));
    enum announced announced = announcement_add(store, tree, sum);
    if (announced == ANNOUNCED_HERE && engine->run.kind == RUN_ALONE && engine->run.n) {
        merge_run(engine); /* perhaps it is the pending run that will have made its frame */
        if (is_shared(engine, id) || try_frame(engine, id, sum, bytes, true))
            return;
    }
    if (announced == ANNOUNCED_ELSEWHERE)
        run_add(engine, RUN_ALONE, id, NO_INDEX);
    else if (announced != ANNOUNCED_UNKNOWN)
        unstable_add(engine, id);
}

/* Of a page that was not written since it came to that state. */
static bool is_to_be_looked_up(const ksmpy_engine *engine, enum page_state state)
{
    return state == PAGE_NEW || state == PAGE_SEEN || (state == PAGE_REFUSED && engine->asks_again);
}

/* Will this page of the window be looked up? Wrong guesses cost time only. */
static bool wants_sum(const ksmpy_engine *engine, uint32_t id, uint64_t at, bool eager)
{
    const struct cursor *cursor = &engine->cursor;
    const struct page *page = page_record(engine, id);
    enum page_state state = page_state(page);
    if (has_bit(cursor->zero, at) || page_age(page) >= ALWAYS_VISITED || state >= PAGE_SHARED)
        return false;
    if (!engine->tracked)
        return true;
    return has_bit(cursor->written, at) ? eager : is_to_be_looked_up(engine, state);
}

/*
 * The page after those whose checksums are known.  Its place in the index, and then the pages that
 * wait there, come from memory while pages before it are dealt with.
 */
static void sum_one_more(ksmpy_engine *engine, uint32_t id)
{
    struct ahead *ahead = &engine->ahead;
    uintptr_t address = page_address(engine, id);
    uint64_t sum;
    bool readable = guard_checksum(&engine->store.key, (const void *)address, &sum);
    sum = readable ? cut_sum(sum) : UNREADABLE;
    ahead->sums[id % AHEAD] = sum;
    ahead->n++;
    if (!readable)
        return;
    stable_prefetch(&engine->store, tree_of(engine, page_node(page_record(engine, id))), sum);
    unstable_prefetch(engine, sum);
    for (int line = 0; line < LINES; line++) /* by itself the processor stops where a page ends */
        __builtin_prefetch((const char *)address + PAGE_SIZE + 64 * line);
    for (uint32_t place = 0, back = AHEAD / 2; place < 2; place++, back += AHEAD / 4)
        if (ahead->n > back && ahead->sums[(id - back) % AHEAD] != UNREADABLE)
            unstable_prefetch_page(engine, ahead->sums[(id - back) % AHEAD], (int)place);
}

static uint64_t sum_of(ksmpy_engine *engine, uint32_t id, bool eager)
{
    const struct cursor *cursor = &engine->cursor;
    struct ahead *ahead = &engine->ahead;
    uint32_t window = region_at(engine, cursor->region)->base + (uint32_t)cursor->window;
    uint64_t past = id - ahead->first, end = least(ahead->end, window + cursor->window_n);
    ahead->n = past < ahead->n ? ahead->n - past : 0;
    ahead->first = id;
    while (ahead->n < AHEAD) {
        uint32_t next = id + (uint32_t)ahead->n;
        if (ahead->n && (next >= end || !wants_sum(engine, next, next - window, eager)))
            break;
        sum_one_more(engine, next);
    }
    return ahead->sums[id % AHEAD];
}

/* Does a block that glibc has mapped for itself begin here: {0, its size | 2}? */
static bool is_block_head(const void *page)
{
    uint64_t words[2];
    return guard_copy(words, page, sizeof words) && !words[0] && words[1] % PAGE_SIZE == 2 &&
           words[1] > PAGE_SIZE;
}

/*
 * mremap makes a mapping longer, and that of an overlay would show the frames that come next.  A
 * range of several mappings it refuses (EFAULT), and realloc() copies then.  So what may be grown
 * is never one overlay: the last page of such a region is left alone, and so is the first one of
 * each block of malloc's in it, since neighbouring blocks are one mapping.
 */
static bool stays_apart(const struct region *region, uint64_t i, const void *bytes)
{
    return region->growing && (i + 1 == region->n || is_block_head(bytes));
}

/* changed: its checksum is not that of the last visit, or there was none. */
static void look_up(ksmpy_engine *engine, uint32_t id, bool changed, bool eager)
{
    struct page *page = page_record(engine, id);
    const void *bytes = (const void *)page_address(engine, id);
    uint64_t sum = sum_of(engine, id, eager);
    enum page_state state = page_state(page);
    if (sum == UNREADABLE) {
        page_withdraw(engine, id);
        page_become(engine, id, PAGE_NEW, NO_INDEX);
        engine->unreadable = true;
        return;
    }
    bool indexed = page_waits(page), zero = sum == engine->sum_of_zeros;
    if (!engine->tracked)
        changed = state == PAGE_NEW || page_sum(page) != sum;
    if (indexed && !changed && !(zero && engine->knobs[KSMPY_KNOB_USE_ZERO_PAGES]))
        return; /* whatever is equal to it will find it */
    if (state == PAGE_REFUSED && !changed && !engine->asks_again) {
        count_refusal(engine, -EDQUOT, 1);
        return;
    }
    page_withdraw(engine, id);
    page_set_sum(page, sum);
    page_become(engine, id, PAGE_SEEN, NO_INDEX);
    if (zero && cursor_at_hole(engine, id)) {
        page_become(engine, id, PAGE_HOLE, NO_INDEX);
        return;
    }
    bool to_zero_page = zero && engine->knobs[KSMPY_KNOB_USE_ZERO_PAGES];
    const struct region *region = region_at(engine, region_of(engine, id));
    bool apart = !to_zero_page && stays_apart(region, id - region->base, bytes);
    bool settled = !changed || eager;
    bool equal = settled && !apart && run_extends(engine, RUN_EQUAL, id, 0);
    if (!to_zero_page && !equal && !apart && try_frame(engine, id, sum, bytes, settled))
        return;
    if (engine->store.away)
        return; /* it is looked up again */
    engine->result->volatiles += changed;
    if (!settled || apart)
        return;
    if (equal)
        engine->run.n++;
    else if (to_zero_page)
        run_add(engine, RUN_ZERO, id, NO_INDEX);
    else if (!try_candidate(engine, id, sum, bytes))
        wait_or_go_ahead(engine, id, sum, bytes);
}

/* Visits to skip by age: the kernel's skip_age(), admin-guide/mm/ksm "smart_scan". */
static unsigned skips_of(unsigned age)
{
    return age <= 3 ? 1 : age <= 5 ? 2 : age <= 8 ? 4 : 8;
}

/* The age before the visit decides, and the visit raises it. */
static bool smart_skip(const ksmpy_engine *engine, struct page *page)
{
    if (!engine->knobs[KSMPY_KNOB_SMART_SCAN])
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

static void pass_over(ksmpy_engine *engine)
{
    engine->skipped++;
    engine->result->skipped++;
}

/* The page tables say that a page is the owner's own memory, not what we left there. */
static void visit_written(ksmpy_engine *engine, uint32_t id, bool zero, bool eager)
{
    enum page_state state = page_state(page_record(engine, id));
    if (zero) {
        page_withdraw(engine, id);
        if (state != PAGE_ZERO)
            page_become(engine, id, PAGE_HOLE, NO_INDEX);
        pass_over(engine);
        return;
    }
    engine->scanned++;
    engine->result->scanned++;
    page_withdraw(engine, id);
    page_become(engine, id, PAGE_SEEN, NO_INDEX);
    if (eager)
        look_up(engine, id, true, true);
    else
        engine->result->volatiles++;
}

static void visit_tracked(ksmpy_engine *engine, uint32_t id, bool written, bool zero, bool eager)
{
    struct page *page = page_record(engine, id);
    enum page_state state = page_state(page);
    if (written) {
        visit_written(engine, id, zero, eager);
    } else if (!is_to_be_looked_up(engine, state) || smart_skip(engine, page)) {
        pass_over(engine);
        if (state == PAGE_REFUSED)
            count_refusal(engine, -EDQUOT, 1);
    } else {
        engine->scanned++;
        engine->result->scanned++;
        look_up(engine, id, false, eager);
    }
}

static void visit_untracked(ksmpy_engine *engine, uint32_t id, bool anonymous, bool eager)
{
    struct page *page = page_record(engine, id);
    enum page_state state = page_state(page);
    bool on_zero_page = state == PAGE_ZERO || state == PAGE_HOLE;
    if (on_zero_page && !anonymous && page_is_zero(engine, id)) {
        pass_over(engine);
        return;
    }
    if (on_zero_page)
        page_become(engine, id, PAGE_NEW, NO_INDEX);
    if (smart_skip(engine, page)) {
        pass_over(engine);
        return;
    }
    engine->scanned++;
    engine->result->scanned++;
    look_up(engine, id, false, eager);
}

static void visit(ksmpy_engine *engine, const struct region *region, uint64_t i, bool eager)
{
    uint32_t id = region->base + (uint32_t)i;
    const struct cursor *cursor = &engine->cursor;
    uint64_t at = i - cursor->window;
    bool written = has_bit(cursor->written, at), zero = has_bit(cursor->zero, at);
    if (is_shared(engine, id)) {
        if (has_bit(cursor->copied, at)) {
            engine->scanned++;
            engine->result->scanned++;
            engine->result->unmerged++;
            run_add(engine, RUN_UNMERGE, id, NO_INDEX);
        } else {
            pass_over(engine);
        }
    } else if (engine->tracked) {
        visit_tracked(engine, id, written, zero, eager);
    } else {
        visit_untracked(engine, id, written, eager);
    }
}

/* ---- the pass ---- */

static void end_pass(ksmpy_engine *engine)
{
    engine->full_scans++;
    engine->result->full++;
    pins_look(engine);
    store_reap(&engine->store);
    frames_follow_nodes(engine);
    store_look_away(&engine->store, true);
    cursor_reset(engine);
}

/* Goes on with the next region; at the end of the list the pass is over. */
static void next_region(ksmpy_engine *engine)
{
    struct cursor *cursor = &engine->cursor;
    struct region *region = region_at(engine, cursor->region);
    region->unsure = false;
    cursor->region = region->next;
    cursor->page = 0;
    cursor->window_n = 0;
    if (cursor->region == NO_REGION)
        end_pass(engine);
}

static bool left_alone(const struct region *region)
{
    return region->lost || region->leaving || region->vma_flags & KSMPY_VMA_UNKNOWN;
}

#define LOOKS 16 /* one in so many visits looks at the clock */

static bool takes_long(uint64_t begin, uintptr_t address)
{
    uint64_t took = os_now_ns() - begin;
    return took > LONG_SLICE_NS &&
           (address % bytes_of(HUGE_PAGES) == 0 || took > CUT * LONG_SLICE_NS);
}

/* As far as the end of a run, if there was anything to look at, and it does not take long. */
static void scan_slice(ksmpy_engine *engine, uint64_t max_pages, bool eager)
{
    struct cursor *cursor = &engine->cursor;
    if (cursor->region == NO_REGION) {
        end_pass(engine);
        return;
    }
    const struct region *region = region_at(engine, cursor->region);
    uint64_t before = engine->result->scanned;
    engine->ahead.n = engine->cursor.holes_n = 0;
    engine->bar_known = engine->unreadable = false;
    engine->ahead.end = region->base + (uint32_t)least(cursor->page + max_pages, region->n);
    if (eager && !cursor->eager)
        cursor_turn_eager(engine);
    uint64_t begin = os_now_ns();
    for (uint64_t visited = 0; visited < SLICE_VISITED; visited++) {
        uint64_t scanned = engine->result->scanned - before;
        uintptr_t address = region->address + bytes_of(cursor->page);
        bool at_start = run_starts_at(address);
        if (visited % LOOKS == LOOKS - 1 && takes_long(begin, address))
            break;
        if (cursor->page >= region->n || left_alone(region) || scanned >= max_pages ||
            (scanned && at_start) || engine->unreadable)
            break;
        if (cursor->page >= cursor->window + cursor->window_n || cursor->page < cursor->window ||
            !cursor->window_n)
            cursor_open_window(engine, region, eager);
        visit(engine, region, cursor->page, eager);
        if (engine->store.away)
            break;
        cursor->page++;
    }
    merge_run(engine);
    if (engine->unreadable)
        budget_check_lost(engine, cursor->region);
    store_look_away(&engine->store, false);
    store_flush(&engine->store);
    if (cursor->page >= region->n || left_alone(region))
        next_region(engine);
}

/* false: another process keeps the store locked. */
static bool begin_slice(ksmpy_engine *engine)
{
    if (!follow_rules(engine))
        return false;
    if (engine->cursor.begun)
        return true;
    cursor_reset(engine);
    engine->cursor.begun = true;
    budget_survey(engine);
    follow_room(engine);
    follow_events(engine);
    return true;
}

static bool stopped(const ksmpy_engine *engine)
{
    return atomic_load(&engine->interrupted) || atomic_load(&engine->pass_wanted);
}

/* Nobody is kept waiting by a process that keeps the store locked. */
static int wait_for_store(ksmpy_engine *engine, struct patience *patience)
{
    int error = store_why_not(&engine->store);
    pthread_mutex_unlock(&engine->lock);
    try_again(patience, &error);
    pthread_mutex_lock(&engine->lock);
    return error;
}

static int scan_until(ksmpy_engine *engine, uint64_t max_pages, bool eager)
{
    const struct ksmpy_scan_result *result = engine->result;
    struct patience patience = {0};
    uint64_t passes = engine->full_scans;
    int error = -EAGAIN;
    while (result->scanned < max_pages && engine->full_scans == passes && !stopped(engine) &&
           error == -EAGAIN) {
        if (begin_slice(engine)) {
            scan_slice(engine, least(max_pages - result->scanned, SLICE_SCANNED), eager);
            engine_let_others_in(engine);
            patience = (struct patience){0};
        } else {
            error = wait_for_store(engine, &patience);
        }
    }
    return error == -EAGAIN ? engine->store.broken : error;
}

/* The pass under way ended when its last region went, and this is the first call since. */
static void end_pass_left_over(ksmpy_engine *engine)
{
    if (engine->cursor.begun && engine->cursor.region == NO_REGION)
        end_pass(engine);
}

static void restart(ksmpy_engine *engine)
{
    cursor_reset(engine);
    engine->result->full = 0;
}

int ksmpy_scan(ksmpy_engine *engine, uint64_t max_pages, int flags,
               struct ksmpy_scan_result *result)
{
    memset(result, 0, sizeof *result);
    if (engine->forked)
        return -EPERM;
    sigset_t mask;
    pthread_mutex_lock(&engine->pass);
    pthread_mutex_lock(&engine->lock);
    guard_open(&mask);
    atomic_store(&engine->interrupted, false);
    engine->result = result;
    int error = engine_has_files(engine) ? engine->store.broken : -EBADF;
    if (!error)
        end_pass_left_over(engine);
    if (flags & KSMPY_SCAN_RESTART)
        restart(engine);
    if (!error)
        error = scan_until(engine, max_pages, flags & KSMPY_SCAN_EAGER);
    engine->result = NULL;
    guard_close(&mask);
    pthread_mutex_unlock(&engine->lock);
    pthread_mutex_unlock(&engine->pass);
    check_step(engine);
    return error;
}
