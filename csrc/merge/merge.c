/*
 * Merging: the only code that maps pages onto frames.
 *
 * A run is carried out in pieces: a huge page, or at most FREEZE_MAX small ones.  For each piece:
 * freeze, compare every page with its frame, map the equal ones, give the
 * others back, thaw.  New frames are filled from the live page before that; if
 * it is written meanwhile the comparison fails.  Bookkeeping comes after the
 * thaw, so that nobody waits for it.
 */
#include <errno.h>
#include <string.h>

#include "base/pages.h"
#include "engine/engine.h"
#include "freeze/freezer.h"
#include "ksmpy.h"
#include "os/arena.h"
#include "os/clock.h"
#include "os/devices.h"
#include "os/guard.h"
#include "os/map.h"
#include "store/store.h"

#define TRACKED_RUN 32 /* shortest run whose overlays are tracked */
#define PREFETCH 8 /* pages ahead that the index is told of */

/* What became of one piece: which of its pages lie on their frames now. */
struct piece {
    uint32_t page, frame;
    uint64_t n;
    bool equal[FREEZE_HUGE];
    bool mapped[FREEZE_HUGE];
};

void count_refusal(ksmpy_engine *engine, int error, uint64_t pages)
{
    struct ksmpy_scan_result *result = engine->result;
    if (engine->store.away)
        return; /* they are not refused: the slice ends, and they are looked up again */
    if (error == -EBUSY) {
        engine->busy += pages;
        result->busy += pages;
    } else if (error == -ENOMEM || error == -ENOSPC || error == -EFBIG) {
        engine->no_memory += pages;
        result->no_memory += pages;
    } else if (error == -EDQUOT) {
        engine->no_budget += pages;
        result->no_budget += pages;
    } else {
        engine->differed += pages;
        result->differed += pages;
    }
}

/* Frozen: which pages may be mapped. */
static void compare(ksmpy_engine *engine, struct piece *piece, const uint8_t *view)
{
    for (uint64_t i = 0; i < piece->n; i++) {
        const uint8_t *frame = frame_bytes(&engine->store, piece->frame + (uint32_t)i);
        piece->mapped[i] = false;
        piece->equal[i] = !engine->fz.hole[i] && compare_live(frame, view + bytes_of(i)) == 0;
    }
}

static uint64_t same_length(const struct piece *piece, uint64_t first)
{
    uint64_t end = first + 1;
    while (end < piece->n && piece->equal[end] == piece->equal[first])
        end++;
    return end - first;
}

/* Mappings that an overlay of n pages adds: one for each end that touches no other overlay. */
static uint64_t new_mappings(const ksmpy_engine *engine, uint32_t page, uint64_t n)
{
    const struct region *region = region_at(engine, region_of(engine, page));
    uint64_t first = page - region->base, end = first + n;
    bool left = first > 0 && is_shared(engine, page - 1);
    bool right = end < region->n && is_shared(engine, page + (uint32_t)n);
    return 2 - (uint64_t)left - (uint64_t)right;
}

/* Frozen: equal pages onto their frames, the others back. 0 or the last error. */
static int exchange(ksmpy_engine *engine, struct piece *piece)
{
    int failure = 0, vma_flags = region_at(engine, region_of(engine, piece->page))->vma_flags;
    for (uint64_t i = 0, n; i < piece->n; i += n) {
        n = same_length(piece, i);
        uint64_t more = new_mappings(engine, piece->page + (uint32_t)i, n);
        int error = piece->equal[i] ? -EDQUOT : -ECANCELED;
        if (piece->equal[i] && budget_has_room(engine, more))
            error = freeze_overlay(&engine->fz, i, n, engine->store.memfd,
                                   frame_offset(&engine->store, piece->frame + (uint32_t)i));
        if (error)
            freeze_restore(&engine->fz, i, n);
        else
            memset(piece->mapped + i, true, n);
        if (!error && vma_flags & KSMPY_VMA_DONTDUMP)
            os_set_vma_flags(page_address(engine, piece->page + (uint32_t)i), n,
                             KSMPY_VMA_DONTDUMP);
        if (error && piece->equal[i])
            failure = error;
        engine->vmas += error ? 0 : more;
    }
    return failure;
}

/* It was frozen and is not merged: nobody knows whether it was written before that. */
static void look_anew(ksmpy_engine *engine, uint32_t page)
{
    if (engine->tracked && engine->fz.ops->forgets_writes)
        page_withdraw(engine, page);
}

static void settle(ksmpy_engine *engine, const struct piece *piece, int error)
{
    uint64_t left = 0;
    bool locked = store_lock(&engine->store);
    for (uint64_t i = 0; i < piece->n; i++) {
        if (i + PREFETCH < piece->n) {
            uint32_t later = piece->page + (uint32_t)i + PREFETCH;
            unstable_prefetch(engine, page_sum(page_record(engine, later)));
        }
        if (!piece->mapped[i]) {
            store_leave(&engine->store, piece->frame + (uint32_t)i);
            look_anew(engine, piece->page + (uint32_t)i);
            left++;
            continue;
        }
        page_share(engine, piece->page + (uint32_t)i, piece->frame + (uint32_t)i);
        cursor_page_shared(engine, piece->page + (uint32_t)i);
        engine->result->merged++;
    }
    if (locked)
        store_unlock(&engine->store);
    if (left)
        count_refusal(engine, error, left);
}

/* Pages that are no overlay yet: freezing an overlay would stop nobody. */
static uint64_t own_memory(const ksmpy_engine *engine, uint32_t page, uint64_t n)
{
    uint64_t own = 0;
    while (own < n && !is_shared(engine, page + (uint32_t)own))
        own++;
    return own;
}

/* While there is no overlay in the region, which would be what is cast. */
static void need_shadow(ksmpy_engine *engine, uint32_t page)
{
    struct region *region = region_at(engine, region_of(engine, page));
    if (region->pages_in[PAGE_SHARED] || region->shadow || !budget_has_room(engine, 3))
        return; /* a shadow takes one, and the overlay that it is for two */
    look_anew(engine, region->base); /* it may go away for it, and come back */
    region->shadow = freezer_shadow(&engine->fz, region->address, region->n, region->vma_flags);
    engine->vmas += region->shadow != 0;
}

static uint64_t refuse(ksmpy_engine *engine, struct piece *piece, uint64_t n, int error)
{
    piece->n = n;
    memset(piece->mapped, false, n);
    for (uint64_t i = 0; i < n; i++)
        if (!is_shared(engine, piece->page + (uint32_t)i))
            look_anew(engine, piece->page + (uint32_t)i);
    count_refusal(engine, error, n);
    return n;
}

static void leave_frames(ksmpy_engine *engine, uint32_t first, uint64_t n)
{
    bool locked = store_lock(&engine->store);
    for (uint64_t i = 0; i < n; i++)
        store_leave(&engine->store, first + (uint32_t)i);
    if (locked)
        store_unlock(&engine->store);
}

/*
 * The frames are joined before anything is frozen: from then on no other process frees them, and
 * if this one dies everybody knows what it may have mapped.
 */
static int64_t join(ksmpy_engine *engine, const struct piece *piece, uint64_t n)
{
    struct store *store = &engine->store;
    int64_t joined = -ESTALE;
    if (!store_lock(store))
        return store_why_not(store);
    if (engine->rule_changes == store->head->rule_changes)
        joined = store_join(store, piece->frame, n);
    store_unlock(store);
    return joined;
}

/* Pages whose frames have been joined for them; how many were frozen, or why none was. */
static int64_t exchange_piece(ksmpy_engine *engine, struct piece *piece, uint64_t n)
{
    const uint8_t *view;
    int64_t frozen = freeze(&engine->fz, page_address(engine, piece->page), n, &view);
    if (frozen <= 0)
        return frozen;
    piece->n = (uint64_t)frozen;
    compare(engine, piece, view);
    int error = exchange(engine, piece);
    thaw(&engine->fz);
    settle(engine, piece, error);
    return frozen;
}

/*
 * One piece from the start of a run; returns how many pages it dealt with, mapped or refused, each of
 * which has left its frame if it does not lie on it.  joined: the frames of all n pages are.
 */
static uint64_t merge_piece(ksmpy_engine *engine, struct piece *piece, uint64_t n, bool joined)
{
    uint64_t reach = freeze_reach(&engine->fz, page_address(engine, piece->page), n);
    uint64_t own = own_memory(engine, piece->page, reach);
    int64_t held = joined ? (int64_t)own : -ECANCELED, got = -ECANCELED;
    budget_recount(engine, 2); /* exchange() cannot */
    need_shadow(engine, piece->page);
    if (own && !joined)
        held = join(engine, piece, own);
    if (held < 0)
        return refuse(engine, piece, 1, (int)held);
    if (own)
        got = exchange_piece(engine, piece, (uint64_t)held);
    uint64_t frozen = got < 0 ? 0 : (uint64_t)got;
    /* Locked memory: not even one page could be moved. */
    uint64_t done = frozen ? frozen : got == -EINVAL ? (uint64_t)held : 1;
    leave_frames(engine, piece->frame + (uint32_t)frozen,
                 (joined ? done : (uint64_t)held) - frozen);
    return frozen ? frozen : refuse(engine, piece, done, got == -EINVAL ? -EBUSY : (int)got);
}

/*
 * Takes the faults of later readers, of whom each would find 16 pages mapped by the one before it.
 */
static void fault_in(uintptr_t address, uint64_t n)
{
    guard_touch(address, address + bytes_of(n), bytes_of(FAULT_AROUND));
}

/* Short overlays are not worth a call, which takes as long as to look at 50 pages. */
static void track_overlays(ksmpy_engine *engine, uint32_t page, uint64_t n)
{
    if (n >= TRACKED_RUN && freezer_track_overlay(&engine->fz, page_address(engine, page), n) == 0)
        return;
    mark_blind(engine, page, n);
}

void settle_run(ksmpy_engine *engine, uint32_t page, uint64_t n)
{
    for (uint64_t i = 0, length; i < n; i += length) {
        bool shared = is_shared(engine, page + (uint32_t)i);
        length = 1;
        while (i + length < n && shared == is_shared(engine, page + (uint32_t)(i + length)))
            length++;
        if (shared)
            track_overlays(engine, page + (uint32_t)i, length);
    }
}

void merge_onto_frames(ksmpy_engine *engine, uint32_t page, uint32_t frame, uint64_t n)
{
    struct piece piece;
    uintptr_t start = page_address(engine, page);
    for (uint64_t left = n, done; left; left -= done) {
        piece.page = page;
        piece.frame = frame;
        done = merge_piece(engine, &piece, left, false);
        page += (uint32_t)done;
        frame += (uint32_t)done;
    }
    fault_in(start, n); /* a fault maps nothing beyond its mapping */
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
static uint32_t join_older(ksmpy_engine *engine, const struct batch *batch, uint64_t i, int tree)
{
    struct store *store = &engine->store;
    uint32_t frame = batch->frame + (uint32_t)i;
    uint32_t older =
        stable_find(store, tree, frame_at(store, frame)->sum, frame_bytes(store, frame), NO_FRAME);
    bool ours = older >= batch->taken && older < batch->taken_end;
    return older != NO_FRAME && !ours && store_join(store, older, 1) == 1 ? older : NO_FRAME;
}

/* With the lock held, and all new frames joined: which of them are needed goes into the index. */
static void choose_frames(ksmpy_engine *engine, struct batch *batch, int tree)
{
    struct store *store = &engine->store;
    for (uint64_t i = 0; i < batch->n; i++) {
        uint32_t frame = batch->frame + (uint32_t)i;
        uint32_t older = store->shared ? join_older(engine, batch, i, tree) : NO_FRAME;
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
static int adopt_frames(ksmpy_engine *engine, struct batch *batch)
{
    struct store *store = &engine->store;
    struct piece piece = {.frame = batch->frame};
    int tree = tree_of(engine, page_node(page_record(engine, batch->page)));
    fault_in((uintptr_t)frame_bytes(store, batch->frame), batch->n);
    for (uint32_t frame = batch->frame; frame < batch->frame + batch->n; frame++) {
        frame_at(store, frame)->sum = store_sum(store, frame_bytes(store, frame));
        stable_prefetch(store, tree, frame_at(store, frame)->sum);
    }
    if (!store_lock(store))
        return store_why_not(store);
    int64_t joined = join(engine, &piece, batch->n);
    if (joined > 0)
        choose_frames(engine, batch, tree);
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
static int promote_part(ksmpy_engine *engine, struct batch *batch)
{
    struct piece piece;
    int error = adopt_frames(engine, batch);
    for (uint64_t i = 0, done; i < batch->n && !error; i += done) {
        piece.page = batch->page + (uint32_t)i;
        piece.frame = batch->onto[i];
        done = merge_piece(engine, &piece, row_from(batch, i), true);
    }
    return error;
}

/* The pages up to the next huge one, of at most n. */
static uint64_t to_next_huge(const ksmpy_engine *engine, uint32_t page, uint64_t n)
{
    uint64_t rest = HUGE_PAGES - (page_address(engine, page) >> PAGE_SHIFT) % HUGE_PAGES;
    return least(n, rest);
}

int promote(ksmpy_engine *engine, uint32_t page, uint64_t *n)
{
    struct store *store = &engine->store;
    struct batch batch;
    uint64_t taken = *n;
    int64_t filled = 0;
    int error = 0;
    *n = 0;
    batch.taken = store_take(store, (int)page_node(page_record(engine, page)), &taken);
    if (batch.taken == NO_FRAME)
        return -ENOMEM;
    batch.taken_end = batch.taken + (uint32_t)taken;
    for (; *n < taken && !error; *n += error ? 0 : batch.n) {
        batch.page = page + (uint32_t)*n;
        batch.frame = batch.taken + (uint32_t)*n;
        batch.n = to_next_huge(engine, batch.page, taken - *n);
        filled =
            store_fill(store, batch.frame, (const void *)page_address(engine, batch.page), batch.n);
        if (filled == -ENOSPC)
            store_fills_up(store);
        batch.n = filled > 0 ? (uint64_t)filled : 0;
        error = filled > 0 ? promote_part(engine, &batch) : (int)filled;
    }
    store_give_back(store, batch.taken + (uint32_t)*n, taken - *n);
    fault_in(page_address(engine, page), *n);
    settle_run(engine, page, *n);
    return *n ? 0 : error;
}

static bool on_frame(const ksmpy_engine *engine, uint32_t page, uint32_t frame)
{
    return is_shared(engine, page) && page_record(engine, page)->link == frame;
}

/* The pages that wait for frames of which some could not be made. */
static void merge_onto_promoted(ksmpy_engine *engine, const struct run *run)
{
    for (uint64_t i = 0, n; i < run->n; i += n) {
        uint32_t page = run->page + (uint32_t)i, target = run->target + (uint32_t)i;
        n = 1;
        if (!is_shared(engine, target))
            continue;
        uint32_t frame = page_record(engine, target)->link;
        while (i + n < run->n && on_frame(engine, target + (uint32_t)n, frame + (uint32_t)n))
            n++;
        merge_onto_frames(engine, page, frame, n);
    }
    settle_run(engine, run->page, run->n);
}

static void merge_pages(ksmpy_engine *engine, struct run run)
{
    while (run.n) {
        struct run part = run;
        int error = promote(engine, run.target, &part.n);
        if (error) {
            count_refusal(engine, error, run.n);
            return;
        }
        merge_onto_promoted(engine, &part);
        run.page += (uint32_t)part.n;
        run.target += (uint32_t)part.n;
        run.n -= part.n;
    }
}

/* ---- pages that others wait for ---- */

/* They become frames' first sharers; whoever waits elsewhere hears of it. */
static void promote_alone(ksmpy_engine *engine, struct run run)
{
    for (uint64_t n; run.n; run.page += (uint32_t)n, run.n -= n) {
        n = run.n;
        int error = promote(engine, run.page, &n);
        if (!error)
            continue;
        count_refusal(engine, error, run.n);
        return;
    }
}

/* Whatever came of it: nobody may go on waiting for these pages. */
static void settle_claims(ksmpy_engine *engine, const struct run *run)
{
    struct store *store = &engine->store;
    bool locked = store_lock(store);
    for (uint64_t i = 0; i < run->n; i++) {
        const struct page *page = page_record(engine, run->page + (uint32_t)i);
        announcement_settle(store, tree_of(engine, page_node(page)), page_sum(page),
                            page_state(page) == PAGE_SHARED);
    }
    if (locked)
        store_unlock(store);
}

/* ---- zero pages ---- */

static bool is_zero(const void *page)
{
    bool zero;
    return guard_is_zero(page, &zero) && zero;
}

bool page_is_zero(const ksmpy_engine *engine, uint32_t id)
{
    return is_zero((const void *)page_address(engine, id));
}

static uint64_t zero_piece(ksmpy_engine *engine, uint32_t page, uint64_t n)
{
    struct piece piece = {.page = page};
    const uint8_t *view;
    int vma_flags = region_at(engine, region_of(engine, page))->vma_flags;
    int64_t got = freeze(&engine->fz, page_address(engine, page), n, &view);
    if (got < 0) {
        count_refusal(engine, (int)got, 1);
        return 1;
    }
    piece.n = (uint64_t)got;
    for (uint64_t i = 0; i < piece.n; i++)
        piece.equal[i] = !engine->fz.hole[i] && is_zero(view + bytes_of(i));
    for (uint64_t i = 0, length; i < piece.n; i += length) {
        length = same_length(&piece, i);
        int error = piece.equal[i] ? freeze_zero(&engine->fz, i, length, vma_flags) : -ECANCELED;
        if (error)
            freeze_restore(&engine->fz, i, length);
        memset(piece.mapped + i, error == 0, length);
    }
    thaw(&engine->fz);
    for (uint64_t i = 0; i < piece.n; i++)
        if (piece.mapped[i]) {
            page_become(engine, page + (uint32_t)i, PAGE_ZERO, NO_INDEX);
            engine->result->zeroed++;
        } else {
            count_refusal(engine, -ECANCELED, 1);
        }
    return piece.n;
}

static void merge_zeros(ksmpy_engine *engine, uint32_t page, uint64_t n)
{
    for (uint64_t done; n; n -= done) {
        done = zero_piece(engine, page, n);
        page += (uint32_t)done;
    }
}

/* Pages may have moved since they were looked up; the next pass finds those in their new tree. */
static void leave_moved_pages(ksmpy_engine *engine, struct run *run)
{
    if (engine->knobs[KSMPY_KNOB_MERGE_ACROSS_NODES] || engine->nodes == 1 ||
        engine->injected_nodes)
        return;
    uint64_t wanted = run->n;
    run->n = pages_on_their_node(engine, run->page, run->n);
    if (run->kind == RUN_PAGE)
        run->n = pages_on_their_node(engine, run->target, run->n);
    if (run->n < wanted)
        count_refusal(engine, -ECANCELED, wanted - run->n);
}

/* Once: who changes it afterwards has his reasons. */
static void tell_core_dumps(void)
{
    static atomic_flag told = ATOMIC_FLAG_INIT;
    if (!atomic_flag_test_and_set(&told))
        os_dump_overlays();
}

static void merge_onto(ksmpy_engine *engine, struct run run)
{
    tell_core_dumps();
    leave_moved_pages(engine, &run);
    if (!run.n)
        return;
    if (run.kind == RUN_EQUAL) {
        merge_equal(engine, run);
    } else if (!budget_allows(engine, run.n, run.kind == RUN_PAGE ? 4 : 2)) {
        budget_refuse(engine, run.page, run.n, run.n);
        count_refusal(engine, -EDQUOT, run.n);
    } else if (run.kind == RUN_FRAME) {
        merge_onto_frames(engine, run.page, run.target, run.n);
        settle_run(engine, run.page, run.n);
    } else if (run.kind == RUN_ALONE) {
        promote_alone(engine, run);
    } else {
        merge_pages(engine, run);
    }
}

#define DEVICES_NS 10000000 /* to ask takes 2.7 us a descriptor */

/* Pages that a device may write into have to be refused one by one, which only uffd-move can. */
static bool devices_may_write(ksmpy_engine *engine)
{
    uint64_t now = os_now_ns();
    if (engine->minds_devices && now - engine->devices_asked_ns >= DEVICES_NS) {
        engine->devices = os_has_devices();
        engine->devices_asked_ns = now;
    }
    return engine->devices;
}

/*
 * After mlockall(MCL_FUTURE) an overlay would be filled with copies of its frames at once, and
 * without its own descriptors the engine would write into other files.
 */
static bool merging_is_barred(ksmpy_engine *engine)
{
    if (!engine->bar_known)
        engine->merging_barred =
            os_locks_new_memory() || !engine_has_files(engine) || devices_may_write(engine);
    engine->bar_known = true;
    return engine->merging_barred;
}

void merge_run(ksmpy_engine *engine)
{
    struct run run = engine->run;
    if (!run.n)
        return;
    engine->run.page += (uint32_t)run.n;
    engine->run.target += (uint32_t)run.n;
    engine->run.n = 0;
    if (run.kind == RUN_UNMERGE) {
        if (!unmerge_run(engine, run.page, run.n))
            count_refusal(engine, -EDQUOT, run.n);
    } else if (merging_is_barred(engine)) {
        count_refusal(engine, -EBUSY, run.n);
    } else if (run.kind == RUN_ZERO) {
        merge_zeros(engine, run.page, run.n);
    } else {
        merge_onto(engine, run);
    }
    if (run.kind == RUN_ALONE)
        settle_claims(engine, &run);
}
