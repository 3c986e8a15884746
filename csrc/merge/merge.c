/*
 * Merging: the only code that maps pages onto frames.
 *
 * A run is carried out in pieces: a huge page, or at most FREEZE_MAX small ones.  For each piece:
 * freeze, compare every page with its frame, map the equal ones, give the
 * others back, thaw.  New frames are filled from the live page before that; if
 * it is written meanwhile the comparison fails.  Bookkeeping comes after the
 * thaw, so that nobody waits for it.
 */
#include "engine/engine.h"

#include <errno.h>
#include <string.h>

#include "os/guard.h"

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

/* One piece from the start of a run; returns how many pages it dealt with, mapped or refused. */
static uint64_t merge_piece(ksmpy_engine *engine, struct piece *piece, uint64_t n)
{
    const uint8_t *view;
    uint64_t reach = freeze_reach(&engine->fz, page_address(engine, piece->page), n);
    uint64_t own = own_memory(engine, piece->page, reach);
    budget_recount(engine, 2); /* exchange() cannot */
    need_shadow(engine, piece->page);
    if (!own)
        return refuse(engine, piece, 1, -ECANCELED);
    int64_t joined = join(engine, piece, own);
    if (joined < 0)
        return refuse(engine, piece, 1, (int)joined);
    int64_t got = freeze(&engine->fz, page_address(engine, piece->page), (uint64_t)joined, &view);
    uint64_t frozen = got < 0 ? 0 : (uint64_t)got;
    if (frozen) {
        piece->n = frozen;
        compare(engine, piece, view);
        int error = exchange(engine, piece);
        thaw(&engine->fz);
        settle(engine, piece, error);
    }
    leave_frames(engine, piece->frame + (uint32_t)frozen, (uint64_t)joined - frozen);
    if (got == -EINVAL) /* its memory is locked; not even one page could be moved */
        return refuse(engine, piece, (uint64_t)joined, -EBUSY);
    return frozen ? frozen : refuse(engine, piece, 1, (int)got);
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
        done = merge_piece(engine, &piece, left);
        page += (uint32_t)done;
        frame += (uint32_t)done;
    }
    fault_in(start, n); /* a fault maps nothing beyond its mapping */
}

/* New frames get their place in the index once they have a sharer, or go back. */
static void adopt_frames(ksmpy_engine *engine, const struct piece *piece, uint64_t n)
{
    struct store *store = &engine->store;
    int tree = tree_of(engine, page_node(page_record(engine, piece->page)));
    for (uint64_t i = 0; i < n; i++) {
        if (!piece->mapped[i])
            continue;
        const uint8_t *bytes = frame_bytes(store, piece->frame + (uint32_t)i);
        uint64_t sum = store_sum(store, bytes);
        frame_at(store, piece->frame + (uint32_t)i)->sum = sum;
        stable_prefetch(store, tree, sum);
    }
    bool locked = store_lock(store);
    for (uint64_t i = 0; i < n; i++)
        if (piece->mapped[i])
            store_adopt(store, piece->frame + (uint32_t)i, tree);
        else
            store_give_back(store, piece->frame + (uint32_t)i, 1);
    if (locked)
        store_unlock(store);
}

/* Pages become the first sharers of n filled frames. Those that failed leave a free one behind. */
static void promote_piece(ksmpy_engine *engine, uint32_t page, uint32_t frame, uint64_t n)
{
    struct piece piece;
    fault_in((uintptr_t)frame_bytes(&engine->store, frame), n);
    for (uint64_t left = n, done; left; left -= done) {
        piece.page = page;
        piece.frame = frame;
        done = merge_piece(engine, &piece, left);
        adopt_frames(engine, &piece, done);
        page += (uint32_t)done;
        frame += (uint32_t)done;
    }
}

/* The pages up to the next huge one, of at most n. */
static uint64_t to_next_huge(const ksmpy_engine *engine, uint32_t page, uint64_t n)
{
    uint64_t rest = HUGE_PAGES - (page_address(engine, page) >> PAGE_SHIFT) % HUGE_PAGES;
    return least(n, rest);
}

uint32_t promote(ksmpy_engine *engine, uint32_t page, uint64_t *n, int *error)
{
    struct store *store = &engine->store;
    uint64_t taken = *n, part;
    *error = -ENOMEM;
    uint32_t first = store_take(store, (int)page_node(page_record(engine, page)), &taken);
    *n = 0;
    if (first == NO_FRAME)
        return NO_FRAME;
    for (; *n < taken; *n += part) {
        uint32_t from = page + (uint32_t)*n, frame = first + (uint32_t)*n;
        part = to_next_huge(engine, from, taken - *n);
        int64_t filled = store_fill(store, frame, (const void *)page_address(engine, from), part);
        if (filled <= 0) {
            *error = (int)filled;
            if (filled == -ENOSPC)
                store_fills_up(store);
            break;
        }
        part = (uint64_t)filled;
        promote_piece(engine, from, frame, part);
    }
    store_give_back(store, first + (uint32_t)*n, taken - *n);
    fault_in(page_address(engine, page), *n);
    settle_run(engine, page, *n);
    return *n ? first : NO_FRAME;
}

static bool on_frame(const ksmpy_engine *engine, uint32_t page, uint32_t frame)
{
    const struct page *record = page_record(engine, page);
    return page_state(record) == PAGE_SHARED && record->link == frame;
}

/* The pages that wait for frames of which some could not be made. */
static void merge_onto_promoted(ksmpy_engine *engine, const struct run *run, uint32_t frame)
{
    for (uint64_t i = 0, n; i < run->n; i += n) {
        n = 0;
        while (i + n < run->n &&
               on_frame(engine, run->target + (uint32_t)(i + n), frame + (uint32_t)(i + n)))
            n++;
        if (n)
            merge_onto_frames(engine, run->page + (uint32_t)i, frame + (uint32_t)i, n);
        else
            n = 1;
    }
    settle_run(engine, run->page, run->n);
}

static void merge_pages(ksmpy_engine *engine, struct run run)
{
    while (run.n) {
        struct run part = run;
        int error;
        uint32_t frame = promote(engine, run.target, &part.n, &error);
        if (frame == NO_FRAME) {
            count_refusal(engine, error, run.n);
            return;
        }
        merge_onto_promoted(engine, &part, frame);
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
        int error;
        n = run.n;
        if (promote(engine, run.page, &n, &error) != NO_FRAME)
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
        wanted_settle(store, tree_of(engine, page_node(page)), page_sum(page),
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
