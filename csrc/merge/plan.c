#include "merge/plan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/pages.h"
#include "merge/bar.h"
#include "merge/budget.h"
#include "merge/exchange.h"
#include "merge/merger.h"
#include "merge/onto_frames.h"
#include "merge/publish.h"
#include "merge/refusal.h"
#include "merge/run.h"
#include "os/arena.h"
#include "os/map.h"
#include "pages/candidates.h"
#include "pages/pages.h"
#include "pages/records.h"
#include "store/frames.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/room.h"
#include "store/store.h"

#define PARTS 64 /* how many mappings are made during one freeze at most: writers wait for all */
#define PLANNED_MAX 65536 /* pages that can be planned: twice as many as one call visits */
#define ROOM 4096 /* mappings that must be free for a slice to plan: next to always enough */

/* ---- what may be planned ---- */

void plan_begin_slice(struct merger *merger)
{
    struct plan *plan = &merger->plan;
    const struct pages *pages = merger->pages;
    bool one_tree = pages->knobs[KSMPY_KNOB_MERGE_ACROSS_NODES] || pages->nodes == 1;
    plan->full = plan->sorted || plan->n + 4 * RUN_MAX > PLANNED_MAX ||
                 !budget_allows(&merger->budget, 1, plan->mappings + ROOM);
    plan->open = one_tree && !plan->full;
}

bool plan_is_full(const struct merger *merger)
{
    return merger->plan.full && plan_joined(&merger->plan);
}

/* As new_mappings() in exchange.c, and one less for each neighbour with which it is one mapping. */
static int64_t new_mappings(const struct pages *pages, uint32_t id, uint32_t frame)
{
    const struct region *region = region_at(pages, region_of(pages, id));
    uint64_t i = id - region->base;
    bool left = i > 0 && is_taken(pages, id - 1);
    bool right = i + 1 < region->n && is_taken(pages, id + 1);
    bool on_left = left && page_record(pages, id - 1)->link + 1 == frame;
    bool on_right = right && page_record(pages, id + 1)->link == frame + 1;
    return 2 - (int64_t)left - right - on_left - on_right;
}

/* Plans to merge a page onto a frame, which was joined for it. */
static void add(struct merger *merger, uint32_t id, uint32_t frame)
{
    struct plan *plan = &merger->plan;
    plan->mappings += (uint64_t)new_mappings(merger->pages, id, frame);
    page_withdraw(merger->pages, id);
    page_become(merger->pages, id, PAGE_SEEN, frame);
    *(struct planned *)arena_at(&plan->list, plan->n++) = (struct planned){id, frame};
}

static bool has_memory(struct plan *plan, uint64_t more)
{
    if (!plan->list.base && arena_init(&plan->list, sizeof(struct planned), PLANNED_MAX) < 0)
        return false;
    return plan->n + more <= PLANNED_MAX && arena_grow(&plan->list, plan->n + more) == 0;
}

static void plan_frames(struct merger *merger, const struct run *run)
{
    int64_t joined = join_frames(merger->pages, run->target, run->n);
    for (int64_t i = 0; i < joined; i++)
        add(merger, run->page + (uint32_t)i, run->target + (uint32_t)i);
    uint64_t refused = run->n - (joined > 0 ? (uint64_t)joined : 0);
    if (refused)
        count_refusal(merger, joined < 0 ? (int)joined : -ESTALE, refused);
}

/* ---- pairs ---- */

static uint64_t place_of(uint64_t sum)
{
    return sum % PAIR_SUMS;
}

bool plan_has_pair_of(const struct plan *plan, uint64_t sum)
{
    return has_bit(plan->sums, place_of(sum));
}

static void add_pair(struct merger *merger, uint32_t page, uint32_t equal)
{
    struct plan *plan = &merger->plan;
    if (plan->pairs_n && page_node(page_record(merger->pages, page)) !=
                             page_node(page_record(merger->pages, plan->pairs[0].page)))
        plan_make_frames(merger);
    uint64_t place = place_of(page_sum(page_record(merger->pages, page)));
    plan->sums[place / 64] |= (uint64_t)1 << (place % 64);
    plan->pairs[plan->pairs_n++] = (struct equals){page, equal};
    if (plan->pairs_n == PAIRS)
        plan_make_frames(merger);
}

/*
 * Is the run the start or the rest of a longer stretch?  Planned, it would be merged at another
 * time than that, and onto frames that are not in a row with the others.
 */
static bool is_part_of_longer(const struct pages *pages, const struct run *run)
{
    uintptr_t end = page_address(pages, run->page) + bytes_of(run->n);
    uint32_t before = run->page - 1;
    if (run->n > 1 && run_starts_at(run_place(pages, run, end)))
        return true;
    if (run->page == region_at(pages, region_of(pages, run->page))->base ||
        !is_shared(pages, before))
        return false;
    uint32_t frame = page_record(pages, before)->link;
    if (run->kind == RUN_FRAME)
        return frame + 1 == run->target;
    return run->target != region_at(pages, region_of(pages, run->target))->base &&
           is_shared(pages, run->target - 1) && page_record(pages, run->target - 1)->link == frame;
}

bool plan_run(struct merger *merger, const struct run *run)
{
    struct plan *plan = &merger->plan;
    uint64_t entries = 2 * (plan->pairs_n + run->n);
    bool pairs = run->kind == RUN_PAGE;
    if ((!pairs && run->kind != RUN_FRAME) || !plan->open || run->n >= SHORT_RUN ||
        !has_memory(plan, entries) || is_part_of_longer(merger->pages, run) ||
        !budget_allows(&merger->budget, run->n,
                       plan->mappings + 4 * plan->pairs_n + (pairs ? 4 : 2) * run->n))
        return false;
    if (!pairs)
        plan_frames(merger, run);
    for (uint64_t i = 0; pairs && i < run->n; i++)
        add_pair(merger, run->page + (uint32_t)i, run->target + (uint32_t)i);
    return true;
}

/* Are they still a pair?  A page may have been looked at anew since. */
static bool is_pair(const struct pages *pages, struct equals pair)
{
    const struct page *page = page_record(pages, pair.page),
                      *equal = page_record(pages, pair.equal);
    return page_state(page) == PAGE_SEEN && !page_is_planned(page) && page_waits(equal) &&
           page_sum(page) == page_sum(equal);
}

/* Plans both pages of each pair, with the store's lock held. */
static void plan_pairs(struct merger *merger, const struct batch *batch, const struct equals *pairs)
{
    struct store *store = &merger->pages->store;
    for (uint64_t i = 0; i < batch->n; i++) {
        add(merger, pairs[i].page, batch->onto[i]);
        if (store_join(store, batch->onto[i], 1) == 1)
            add(merger, pairs[i].equal, batch->onto[i]);
        else
            count_refusal(merger, -ESTALE, 1);
    }
}

static int publish_pairs(struct merger *merger, struct batch *batch, const struct equals *pairs)
{
    struct store *store = &merger->pages->store;
    publish_sums(merger->pages, batch);
    if (!store_lock(store))
        return store_why_not(store);
    int error = publish_frames(merger->pages, batch);
    if (!error)
        plan_pairs(merger, batch, pairs);
    store_unlock(store);
    return error;
}

/* Fills the next frames of a batch from each pair's first page; how many pairs were dealt with. */
static uint64_t fill_some(struct merger *merger, struct batch *batch, const struct equals *pairs,
                          uint64_t n)
{
    struct store *store = &merger->pages->store;
    const void *from[PAIRS];
    for (uint64_t i = 0; i < n; i++)
        from[i] = (const void *)page_address(merger->pages, pairs[i].page);
    int64_t filled = store_gather(store, batch->frame, from, n);
    if (filled == -ENOSPC)
        store_fills_up(store);
    batch->page = pairs[0].page;
    batch->n = filled > 0 ? (uint64_t)filled : 0;
    int error = filled > 0 ? publish_pairs(merger, batch, pairs) : (int)filled;
    if (!error)
        return batch->n;
    uint64_t refused = filled > 0 || error == -ENOSPC ? n : 1;
    count_refusal(merger, error, refused);
    store_give_back(store, batch->frame, refused);
    return refused;
}

static uint64_t count_pairs(const struct pages *pages, struct plan *plan)
{
    uint64_t n = 0;
    for (uint64_t i = 0; i < plan->pairs_n; i++)
        if (is_pair(pages, plan->pairs[i]))
            plan->pairs[n++] = plan->pairs[i];
    return n;
}

void plan_make_frames(struct merger *merger)
{
    struct store *store = &merger->pages->store;
    struct plan *plan = &merger->plan;
    struct batch batch;
    uint64_t n = count_pairs(merger->pages, plan), taken = 0;
    for (uint64_t done = 0; done < n; done += taken) {
        taken = n - done;
        batch.taken = store_take(
            store, (int)page_node(page_record(merger->pages, plan->pairs[done].page)), &taken);
        if (batch.taken == NO_FRAME) {
            count_refusal(merger, -ENOMEM, n - done);
            break;
        }
        batch.taken_end = batch.taken + (uint32_t)taken;
        for (uint64_t i = 0; i < taken; i += batch.n) {
            batch.frame = batch.taken + (uint32_t)i;
            batch.n = fill_some(merger, &batch, plan->pairs + done + i, taken - i);
        }
    }
    plan->pairs_n = 0;
    memset(plan->sums, 0, sizeof plan->sums);
}

/* ---- carrying it out ---- */

static int by_page(const void *a, const void *b)
{
    const struct planned *x = a, *y = b;
    return x->page < y->page ? -1 : x->page > y->page;
}

static struct planned *planned_at(const struct plan *plan, uint64_t i)
{
    return arena_at(&plan->list, i);
}

/* Is the page not to go onto that frame any more: has it changed, or is its region left alone? */
static bool is_void(struct pages *pages, struct planned planned)
{
    const struct page *page = page_record(pages, planned.page);
    if (!page_is_planned(page) || page->link != planned.frame)
        return true;
    if (!region_is_left_alone(region_at(pages, region_of(pages, planned.page))))
        return false;
    page_become(pages, planned.page, PAGE_SEEN, NO_INDEX);
    return true;
}

static void leave_void(struct merger *merger)
{
    struct plan *plan = &merger->plan;
    for (; plan_joined(plan) && is_void(merger->pages, *planned_at(plan, plan->done)); plan->done++)
        store_leave(&merger->pages->store, planned_at(plan, plan->done)->frame);
}

/* Puts planned pages that lie side by side into a piece; how many. */
static uint64_t gather_piece(struct merger *merger, struct piece *piece)
{
    const struct plan *plan = &merger->plan;
    uint64_t n = 0, parts = 0;
    piece->page = planned_at(plan, plan->done)->page;
    for (; n < plan_joined(plan) && n < FREEZE_MAX; n++) {
        struct planned next = *planned_at(plan, plan->done + n);
        if (n && (next.page != piece->page + n || is_void(merger->pages, next) ||
                  region_of(merger->pages, next.page) != region_of(merger->pages, piece->page)))
            break;
        parts += !n || next.frame != piece->frames[n - 1] + 1;
        if (parts > PARTS)
            break;
        piece->frames[n] = next.frame;
    }
    return n;
}

static void empty(struct plan *plan)
{
    plan->n = plan->done = plan->mappings = 0;
    plan->sorted = false;
}

bool plan_step(struct merger *merger, uint32_t *page, uint64_t *n)
{
    struct plan *plan = &merger->plan;
    struct piece piece;
    *n = *page = 0;
    if (plan_joined(plan) && merging_is_barred(merger)) {
        count_refusal(merger, -EBUSY, plan_joined(plan));
        plan_drop(merger);
    }
    if (!plan->sorted)
        qsort(plan->list.base, plan->n, sizeof(struct planned), by_page);
    plan->sorted = true;
    leave_void(merger);
    if (plan_joined(plan)) {
        *n = merge_piece(merger, &piece, gather_piece(merger, &piece), true);
        *page = piece.page;
        plan->done += *n;
        merged_scattered(merger, *page, *n);
    }
    if (plan_joined(plan))
        return true;
    empty(plan);
    return false;
}

/* Ends all plans.  joined: the frames were joined by this process, and not by its parent. */
static void drop(struct merger *merger, bool joined)
{
    struct plan *plan = &merger->plan;
    plan->pairs_n = 0;
    memset(plan->sums, 0, sizeof plan->sums);
    for (; plan_joined(plan); plan->done++) {
        struct planned planned = *planned_at(plan, plan->done);
        if (!is_void(merger->pages, planned))
            page_become(merger->pages, planned.page, PAGE_SEEN, NO_INDEX);
        if (joined)
            store_leave(&merger->pages->store, planned.frame);
    }
    empty(plan);
}

void plan_drop(struct merger *merger)
{
    struct store *store = &merger->pages->store;
    bool locked = plan_joined(&merger->plan) && store_lock(store);
    drop(merger, true);
    if (locked)
        store_unlock(store);
}

void plan_forget(struct merger *merger)
{
    drop(merger, false);
}

void plan_destroy(struct plan *plan)
{
    arena_destroy(&plan->list);
}
