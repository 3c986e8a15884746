/*
 * One pass over the regions, in slices.
 *
 * The scanner visits pages in order.  For each it decides, from the page's
 * state and from what the page tables say was written, whether to pass it over
 * or to look it up in the index; what is found is collected into runs, which
 * merge.c carries out.  A checksum decides only where to look.
 *
 * Differences to the kernel's scanner that can be seen from outside:
 *  - with write tracking, a page that was not written and is settled costs
 *    nothing and counts as skipped;
 *  - a page that smart_scan passes over stays in the index, so it is still
 *    counted as unshared.
 */
#include "engine.h"

#include <errno.h>
#include <sched.h>
#include <string.h>

#define SLICE_SCANNED 256  /* pages looked at before other threads get the lock */
#define SLICE_VISITED 8192 /* the same for pages passed over */
#define RUN_MAX 1024
#define RANGES 256

static bool bit(const uint64_t *bits, uint64_t i)
{
    return bits[i / 64] >> (i % 64) & 1;
}

/*
 * Pages of the window that were not visited yet: the kernel will not tell again that they were
 * written.
 */
static void remember_written(ksmpy_engine *engine)
{
    const struct cursor *cursor = &engine->cursor;
    if (!engine->tracked || cursor->region == NO_REGION || !cursor->window_n)
        return;
    const struct region *region = region_at(engine, cursor->region);
    for (uint64_t i = cursor->page; i < cursor->window + cursor->window_n; i++) {
        uint32_t id = region->base + (uint32_t)i;
        if (!bit(cursor->written, i - cursor->window) || bit(cursor->zero, i - cursor->window) ||
            page_state(page_record(engine, id)) == PAGE_SHARED)
            continue;
        page_withdraw(engine, id);
        page_become(engine, id, PAGE_SEEN, NO_INDEX);
    }
}

void cursor_page_shared(ksmpy_engine *engine, uint32_t id)
{
    struct cursor *cursor = &engine->cursor;
    if (cursor->region != region_of(engine, id))
        return;
    uint64_t i = id - region_at(engine, cursor->region)->base - cursor->window;
    if (i < cursor->window_n)
        cursor->copied[i / 64] &= ~((uint64_t)1 << (i % 64));
}

void cursor_reset(ksmpy_engine *engine)
{
    remember_written(engine);
    engine->cursor.region = engine->first_region;
    engine->cursor.page = 0;
    engine->cursor.window_n = 0;
}

void cursor_leave(ksmpy_engine *engine, uint32_t region)
{
    struct cursor *cursor = &engine->cursor;
    if (cursor->region != region)
        return;
    cursor->region = region_at(engine, region)->next;
    cursor->page = 0;
    cursor->window_n = 0;
}

/* ---- what was written ---- */

static void set_bits(uint64_t *bits, uint64_t first, uint64_t end)
{
    for (uint64_t i = first; i < end; i++)
        bits[i / 64] |= (uint64_t)1 << (i % 64);
}

typedef int64_t question(int pagemap_fd, uintptr_t address, uint64_t n, struct os_range *ranges,
                         int64_t max, uintptr_t *next);

/* Sets a bit in each map for the pages that the kernel names; zero may be NULL. */
static void ask(const ksmpy_engine *engine, question *about, uintptr_t address, uint64_t n,
                uint64_t *bits, uint64_t *zero)
{
    struct os_range ranges[RANGES];
    uintptr_t at = address, end = address + bytes_of(n);
    while (at < end) {
        uintptr_t next = end;
        int64_t count =
            about(engine->fz.pagemap_fd, at, (end - at) >> PAGE_SHIFT, ranges, RANGES, &next);
        for (int64_t i = 0; i < count; i++) {
            uint64_t first = (ranges[i].start - address) >> PAGE_SHIFT,
                     last = (ranges[i].end - address) >> PAGE_SHIFT;
            set_bits(bits, first, last);
            if (zero && ranges[i].zero)
                set_bits(zero, first, last);
        }
        if (count < 0 || next <= at)
            return; /* nothing is known to be written: the frozen comparison stays the judge */
        at = next;
    }
}

static void ask_tracking(ksmpy_engine *engine, const struct region *region, uintptr_t address,
                         uint64_t n)
{
    struct cursor *cursor = &engine->cursor;
    if (region->merging < region->n) /* otherwise there is nothing but overlays */
        ask(engine, os_written, address, n, cursor->written, cursor->zero);
    if (region->merging)
        ask(engine, os_private, address, n, cursor->copied, NULL);
}

static void ask_page_tables(ksmpy_engine *engine, uintptr_t address, uint64_t n)
{
    struct cursor *cursor = &engine->cursor;
    uint8_t kinds[CHUNK];
    for (uint64_t at = 0; at < n; at += CHUNK) {
        uint64_t part = n - at < CHUNK ? n - at : CHUNK;
        if (os_pages(engine->fz.pagemap_fd, address + bytes_of(at), part, kinds) < 0)
            return;
        for (uint64_t i = 0; i < part; i++) {
            bool own = kinds[i] == OS_PAGE_ANON, zero = kinds[i] == OS_PAGE_ZERO;
            cursor->written[(at + i) / 64] |= (uint64_t)own << ((at + i) % 64);
            cursor->zero[(at + i) / 64] |= (uint64_t)zero << ((at + i) % 64);
            cursor->copied[(at + i) / 64] |= (uint64_t)(own || zero) << ((at + i) % 64);
        }
    }
}

/* A page that lies elsewhere now belongs in another tree. */
void page_move_to_node(ksmpy_engine *engine, uint32_t id, unsigned node)
{
    struct page *page = page_record(engine, id);
    if (page_node(page) == node || page_state(page) == PAGE_SHARED)
        return;
    page_withdraw(engine, id);
    page_set_node(page, node);
}

static void ask_nodes(ksmpy_engine *engine, const struct region *region, uint64_t first, uint64_t n)
{
    int found[CHUNK];
    for (uint64_t at = 0; at < n; at += CHUNK) {
        uint64_t part = n - at < CHUNK ? n - at : CHUNK;
        if (os_nodes(region->address + bytes_of(first + at), part, found) < 0)
            return;
        for (uint64_t i = 0; i < part; i++)
            for (int node = 0; node < engine->nodes; node++)
                if (found[i] == engine->node_ids[node])
                    page_move_to_node(engine, region->base + (uint32_t)(first + at + i),
                                      (unsigned)node);
    }
}

static void open_window(ksmpy_engine *engine, const struct region *region)
{
    struct cursor *cursor = &engine->cursor;
    uint64_t rest = region->n - cursor->page;
    cursor->window = cursor->page;
    cursor->window_n = rest < WINDOW ? rest : WINDOW;
    memset(cursor->written, 0, sizeof cursor->written);
    memset(cursor->zero, 0, sizeof cursor->zero);
    memset(cursor->copied, 0, sizeof cursor->copied);
    uintptr_t address = region->address + bytes_of(cursor->window);
    if (engine->tracked)
        ask_tracking(engine, region, address, cursor->window_n);
    else
        ask_page_tables(engine, address, cursor->window_n);
    if (engine->nodes > 1 && !engine->injected_nodes)
        ask_nodes(engine, region, cursor->window, cursor->window_n);
}

/* ---- runs ---- */

static bool same_region(const ksmpy_engine *engine, uint32_t a, uint32_t b)
{
    return region_of(engine, a) == region_of(engine, b);
}

/* The new frames of a run come from one node. */
static bool same_tree(const ksmpy_engine *engine, uint32_t a, uint32_t b)
{
    return tree_of(engine, page_node(page_record(engine, a))) ==
           tree_of(engine, page_node(page_record(engine, b)));
}

static bool follows(const ksmpy_engine *engine, int kind, uint32_t id)
{
    const struct run *run = &engine->run;
    return (int)run->kind == kind && run->n < RUN_MAX && id == run->page + run->n &&
           same_region(engine, id, run->page);
}

/* What would make the pending run longer, if page id wants it. */
static uint32_t wanted(const ksmpy_engine *engine, int kind, uint32_t id)
{
    return follows(engine, kind, id) ? engine->run.target + (uint32_t)engine->run.n : NO_INDEX;
}

static bool extends(const ksmpy_engine *engine, int kind, uint32_t id, uint32_t target)
{
    if (!follows(engine, kind, id))
        return false;
    if (kind == RUN_ZERO || kind == RUN_UNMERGE)
        return true;
    if (target != wanted(engine, kind, id))
        return false;
    return kind == RUN_FRAME || (same_region(engine, target, engine->run.target) &&
                                 same_tree(engine, target, engine->run.target));
}

static void start_run(ksmpy_engine *engine, int kind, uint32_t id, uint32_t target)
{
    merge_run(engine);
    engine->run.kind = kind;
    engine->run.page = id;
    engine->run.target = target;
    engine->run.n = 1;
}

static void add_to_run(ksmpy_engine *engine, int kind, uint32_t id, uint32_t target)
{
    if (extends(engine, kind, id, target))
        engine->run.n++;
    else
        start_run(engine, kind, id, target);
}

/* ---- one page ---- */

static bool is_hole(const ksmpy_engine *engine, uint32_t id)
{
    uint8_t kind = OS_PAGE_ANON;
    os_pages(engine->fz.pagemap_fd, page_address(engine, id), 1, &kind);
    return kind == OS_PAGE_ZERO || kind == OS_PAGE_NONE;
}

/* A page may be what the pending run waits to merge with: carrying it out can share the page. */
static bool is_shared(const ksmpy_engine *engine, uint32_t id)
{
    return page_state(page_record(engine, id)) == PAGE_SHARED;
}

static bool try_frame(ksmpy_engine *engine, uint32_t id, uint64_t sum, const void *bytes)
{
    int tree = tree_of(engine, page_node(page_record(engine, id)));
    uint32_t frame = index_find_frame(engine, tree, sum, bytes, wanted(engine, RUN_FRAME, id));
    if (frame == NO_FRAME)
        return false;
    if (extends(engine, RUN_FRAME, id, frame)) {
        engine->run.n++;
        return true;
    }
    merge_run(engine); /* it may have filled that frame, or made a better one */
    if (is_shared(engine, id))
        return true;
    frame = index_find_frame(engine, tree, sum, bytes, NO_FRAME);
    if (frame == NO_FRAME)
        return false;
    start_run(engine, RUN_FRAME, id, frame);
    return true;
}

/* Another page has these bytes and waits: both of them will share a new frame. */
static bool try_candidate(ksmpy_engine *engine, uint32_t id, uint64_t sum, const void *bytes)
{
    uint32_t other = index_find_candidate(engine, id, wanted(engine, RUN_PAGE, id));
    if (other == NO_PAGE)
        return false;
    if (extends(engine, RUN_PAGE, id, other)) {
        engine->run.n++;
        return true;
    }
    merge_run(engine); /* it may have taken that page */
    if (is_shared(engine, id))
        return true;
    if (try_frame(engine, id, sum, bytes))
        return true;
    other = index_find_candidate(engine, id, NO_PAGE);
    if (other == NO_PAGE)
        return false;
    start_run(engine, RUN_PAGE, id, other);
    return true;
}

/* changed: its checksum is not that of the last visit, or there was none. */
static void look_up(ksmpy_engine *engine, uint32_t id, bool changed, bool eager)
{
    struct page *page = page_record(engine, id);
    const void *bytes = (const void *)page_address(engine, id);
    uint64_t sum = cut_sum(ksmpy_checksum(bytes, PAGE_SIZE));
    enum page_state state = page_state(page);
    bool indexed = state == PAGE_WAITING || state == PAGE_PAIRED;
    bool zero = sum == engine->sum_of_zeros;
    if (!engine->tracked)
        changed = state == PAGE_NEW || page_sum(page) != sum;
    if (indexed && !changed && !(zero && engine->knobs[KSMPY_KNOB_USE_ZERO_PAGES]))
        return; /* whatever is equal to it will find it */
    page_withdraw(engine, id);
    page_set_sum(page, sum);
    page_become(engine, id, PAGE_SEEN, NO_INDEX);
    if (zero && is_hole(engine, id)) {
        page_become(engine, id, PAGE_HOLE, NO_INDEX);
        return;
    }
    bool to_zero_page = zero && engine->knobs[KSMPY_KNOB_USE_ZERO_PAGES];
    if (!to_zero_page && try_frame(engine, id, sum, bytes))
        return;
    if (changed) {
        engine->result->volatiles++;
        if (!eager)
            return;
    }
    if (to_zero_page)
        add_to_run(engine, RUN_ZERO, id, NO_INDEX);
    else if (!try_candidate(engine, id, sum, bytes))
        index_add_candidate(engine, id);
}

/* Visits to skip by age: the kernel's skip_age(), admin-guide/mm/ksm "smart_scan". */
static unsigned skips_of(unsigned age)
{
    return age <= 3 ? 1 : age <= 5 ? 2 : age <= 8 ? 4 : 8;
}

static bool smart_skip(const ksmpy_engine *engine, struct page *page)
{
    if (!engine->knobs[KSMPY_KNOB_SMART_SCAN])
        return false;
    unsigned age = page_age(page);
    if (age < 15)
        page_set_age(page, ++age);
    if (age < 3)
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
    } else if ((state != PAGE_NEW && state != PAGE_SEEN) || smart_skip(engine, page)) {
        pass_over(engine);
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
    bool written = bit(cursor->written, at), zero = bit(cursor->zero, at);
    if (page_state(page_record(engine, id)) == PAGE_SHARED) {
        if (bit(cursor->copied, at)) {
            engine->scanned++;
            engine->result->scanned++;
            engine->result->unmerged++;
            add_to_run(engine, RUN_UNMERGE, id, NO_INDEX);
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
    engine->result->full = 1;
    frames_reap(engine);
    frames_follow_nodes(engine);
    cursor_reset(engine);
}

/* Goes on with the next region; at the end of the list the pass is over. */
static void next_region(ksmpy_engine *engine)
{
    struct cursor *cursor = &engine->cursor;
    cursor->region = region_at(engine, cursor->region)->next;
    cursor->page = 0;
    cursor->window_n = 0;
    if (cursor->region == NO_REGION)
        end_pass(engine);
}

static void scan_slice(ksmpy_engine *engine, uint64_t max_pages, bool eager)
{
    struct cursor *cursor = &engine->cursor;
    if (cursor->region == NO_REGION) {
        end_pass(engine);
        return;
    }
    const struct region *region = region_at(engine, cursor->region);
    uint64_t stop_at = engine->result->scanned + max_pages;
    for (uint64_t visited = 0; visited < SLICE_VISITED && engine->result->scanned < stop_at;
         visited++) {
        if (cursor->page >= region->n || region->lost)
            break;
        if (cursor->page >= cursor->window + cursor->window_n || cursor->page < cursor->window ||
            !cursor->window_n)
            open_window(engine, region);
        visit(engine, region, cursor->page, eager);
        cursor->page++;
    }
    merge_run(engine);
    store_flush(&engine->store);
    if (cursor->page >= region->n || region->lost)
        next_region(engine);
}

static void begin_if_at_start(ksmpy_engine *engine)
{
    if (engine->cursor.region == NO_REGION)
        cursor_reset(engine);
    if (engine->cursor.region == engine->first_region && engine->cursor.page == 0)
        budget_survey(engine);
}

/* Threads that need the lock at once (fork, a dying owner, stats) go first. */
static void let_others_in(ksmpy_engine *engine)
{
    pthread_mutex_unlock(&engine->lock);
    while (atomic_load(&engine->waiting))
        sched_yield();
    pthread_mutex_lock(&engine->lock);
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static bool stopped(const ksmpy_engine *engine)
{
    return atomic_load(&engine->interrupted) || atomic_load(&engine->pass_wanted);
}

static void scan_until(ksmpy_engine *engine, uint64_t max_pages, bool eager)
{
    struct ksmpy_scan_result *result = engine->result;
    while (result->scanned < max_pages && !result->full && !stopped(engine)) {
        begin_if_at_start(engine);
        scan_slice(engine, least(max_pages - result->scanned, SLICE_SCANNED), eager);
        let_others_in(engine);
    }
}

int ksmpy_scan(ksmpy_engine *engine, uint64_t max_pages, int flags,
               struct ksmpy_scan_result *result)
{
    memset(result, 0, sizeof *result);
    if (engine->forked)
        return -EPERM;
    pthread_mutex_lock(&engine->pass);
    pthread_mutex_lock(&engine->lock);
    atomic_store(&engine->interrupted, false);
    engine->result = result;
    if (flags & KSMPY_SCAN_RESTART)
        cursor_reset(engine);
    scan_until(engine, max_pages, flags & KSMPY_SCAN_EAGER);
    engine->result = NULL;
    pthread_mutex_unlock(&engine->lock);
    pthread_mutex_unlock(&engine->pass);
    return 0;
}
