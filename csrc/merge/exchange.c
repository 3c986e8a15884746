/*
 * One piece of a run: a huge page, or small ones as many as freeze_reach() says.
 *
 * Freeze, compare every page with its frame, map the equal ones, give the others back, thaw.
 * Bookkeeping comes after the thaw, so that nobody waits for it.
 */
#include "merge/exchange.h"

#include <errno.h>
#include <string.h>

#include "base/pages.h"
#include "freeze/freezer.h"
#include "freeze/ready.h"
#include "merge/budget.h"
#include "merge/merger.h"
#include "merge/refusal.h"
#include "os/guard.h"
#include "os/map.h"
#include "pages/candidates.h"
#include "pages/pages.h"
#include "pages/records.h"
#include "pages/sharing.h"
#include "store/extents.h"
#include "store/frames.h"
#include "store/lock.h"
#include "store/store.h"

/* Pages for which it is worth it to map frames beforehand, which takes two system calls more. */
#define READY_LEAST 32
#define PREFETCH 8 /* how many pages ahead the place in the index is prefetched */

/* Compares the pages, which are frozen, with their frames: only equal ones may be mapped. */
static void compare(struct merger *merger, struct piece *piece, const uint8_t *view)
{
    for (uint64_t i = 0; i < piece->n; i++) {
        const uint8_t *frame = frame_bytes(&merger->pages->store, piece->frames[i]);
        piece->mapped[i] = false;
        piece->equal[i] = !merger->fz.hole[i] && compare_live(frame, view + bytes_of(i)) == 0;
    }
}

uint64_t piece_same_length(const struct piece *piece, uint64_t first)
{
    uint64_t end = first + 1;
    while (end < piece->n && piece->equal[end] == piece->equal[first])
        end++;
    return end - first;
}

/*
 * How many pages from that one on are to be dealt with together: equal ones whose frames are in a
 * row, which one mmap maps; or ones that are not equal.
 */
static uint64_t part_length(const struct piece *piece, uint64_t first)
{
    uint64_t n = piece_same_length(piece, first), end = 1;
    while (piece->equal[first] && end < n &&
           piece->frames[first + end] == piece->frames[first] + (uint32_t)end)
        end++;
    return piece->equal[first] ? end : n;
}

/*
 * Mappings that an overlay of n pages of the piece adds: one for each end that touches no other
 * overlay.
 */
static uint64_t new_mappings(const struct pages *pages, const struct piece *piece, uint64_t i,
                             uint64_t n)
{
    uint32_t page = piece->page + (uint32_t)i;
    const struct region *region = region_at(pages, region_of(pages, page));
    uint64_t first = page - region->base, end = first + n;
    bool left = i ? piece->mapped[i - 1] : first > 0 && is_shared(pages, page - 1);
    bool right = end < region->n && is_shared(pages, page + (uint32_t)n);
    return 2 - (uint64_t)left - (uint64_t)right;
}

/* Maps the equal ones of the frozen pages, and gives the others back; 0 or the last error. */
static int exchange(struct merger *merger, struct piece *piece)
{
    int failure = 0,
        vma_flags = region_at(merger->pages, region_of(merger->pages, piece->page))->vma_flags;
    for (uint64_t i = 0, n; i < piece->n; i += n) {
        n = part_length(piece, i);
        uint64_t more = new_mappings(merger->pages, piece, i, n);
        int error = piece->equal[i] ? -EDQUOT : -ECANCELED;
        if (piece->equal[i] && budget_has_room(&merger->budget, more))
            error = freeze_overlay(&merger->fz, i, n, merger->pages->store.memfd,
                                   frame_offset(&merger->pages->store, piece->frames[i]));
        if (error)
            freeze_restore(&merger->fz, i, n);
        else
            memset(piece->mapped + i, true, n);
        if (!error && vma_flags & KSMPY_VMA_DONTDUMP)
            os_set_vma_flags(page_address(merger->pages, piece->page + (uint32_t)i), n,
                             KSMPY_VMA_DONTDUMP);
        if (error && piece->equal[i])
            failure = error;
        merger->budget.mappings += error ? 0 : more;
    }
    return failure;
}

/*
 * The page was frozen and is not merged.  By the freeze tracking may have lost that it was written,
 * so it leaves the index and is looked up anew.
 */
static void forget_writes(struct merger *merger, uint32_t page)
{
    if (merger->pages->tracked && merger->fz.ops->forgets_writes)
        page_withdraw(merger->pages, page);
}

/* The page does not go onto the frame that was planned for it. */
static void forget_plan(struct pages *pages, uint32_t page)
{
    if (page_is_planned(page_record(pages, page)))
        page_become(pages, page, PAGE_SEEN, NO_INDEX);
}

/*
 * Is a frame to be left, or an announcement to be taken back?  What does so takes the lock itself; who
 * knows of more of them has it once for all.
 */
static bool concerns_store(const struct pages *pages, const struct piece *piece)
{
    for (uint64_t i = 0; i < piece->n; i++)
        if (!piece->mapped[i] || page_waits(page_record(pages, piece->page + (uint32_t)i)))
            return true;
    return false;
}

static void settle(struct merger *merger, const struct piece *piece, int error)
{
    uint64_t left = 0;
    bool locked = concerns_store(merger->pages, piece) && store_lock(&merger->pages->store);
    for (uint64_t i = 0; i < piece->n; i++) {
        if (i + PREFETCH < piece->n) {
            uint32_t later = piece->page + (uint32_t)i + PREFETCH;
            candidates_prefetch(merger->pages, page_sum(page_record(merger->pages, later)));
        }
        if (!piece->mapped[i]) {
            store_leave(&merger->pages->store, piece->frames[i]);
            forget_plan(merger->pages, piece->page + (uint32_t)i);
            forget_writes(merger, piece->page + (uint32_t)i);
            left++;
            continue;
        }
        page_share(merger->pages, piece->page + (uint32_t)i, piece->frames[i]);
        merger->result->merged++;
    }
    if (locked)
        store_unlock(&merger->pages->store);
    if (left)
        count_refusal(merger, error, left);
}

/* How many pages from that one on are no overlay yet: an overlay must not be frozen. */
static uint64_t own_memory(const struct pages *pages, uint32_t page, uint64_t n)
{
    return is_shared(pages, page) ? 0 : pages_alike(pages, page, n, PAGE_SHARED);
}

/*
 * Makes the region's shadow, which gives pages their identity when they come back.  This has to be
 * done while there is no overlay in the region, since the shadow is made from a page of its own.
 */
static void need_shadow(struct merger *merger, uint32_t page)
{
    struct region *region = region_at(merger->pages, region_of(merger->pages, page));
    if (region->pages_in[PAGE_SHARED] || region->shadow || !budget_has_room(&merger->budget, 3))
        return; /* the shadow takes one mapping, and the overlay that it is for two */
    forget_writes(merger, region->base); /* this page may be moved away for it, and back */
    region->shadow = freezer_shadow(&merger->fz, region->address, region->n, region->vma_flags);
    merger->budget.mappings += region->shadow != 0;
}

static uint64_t refuse(struct merger *merger, struct piece *piece, uint64_t n, int error)
{
    piece->n = n;
    memset(piece->mapped, false, n);
    for (uint64_t i = 0; i < n; i++)
        if (!is_shared(merger->pages, piece->page + (uint32_t)i)) {
            forget_plan(merger->pages, piece->page + (uint32_t)i);
            forget_writes(merger, piece->page + (uint32_t)i);
        }
    count_refusal(merger, error, n);
    return n;
}

static void leave_frames(struct pages *pages, const uint32_t *frames, uint64_t n)
{
    bool locked = n && store_lock(&pages->store);
    for (uint64_t i = 0; i < n; i++)
        store_leave(&pages->store, frames[i]);
    if (locked)
        store_unlock(&pages->store);
}

int64_t join_frames(struct pages *pages, uint32_t frame, uint64_t n)
{
    struct store *store = &pages->store;
    int64_t joined = -ESTALE;
    if (!store_lock(store))
        return store_why_not(store);
    if (pages->rules_followed == store->head->rule_changes)
        joined = store_join(store, frame, n);
    store_unlock(store);
    return joined;
}

/* May one entry map it, with what lies around: are the frames a huge page's, in step with the pages? */
static bool may_be_one_entry(const struct merger *merger, const struct piece *piece)
{
    uint64_t number = page_address(merger->pages, piece->page) >> PAGE_SHIFT;
    return piece->frames[0] % HUGE_PAGES == number % HUGE_PAGES &&
           is_on_huge_page(&merger->pages->store, extent_of(piece->frames[0]));
}

/* How many of the first pages have frames in a row. */
static uint64_t row_length(const struct piece *piece, uint64_t n)
{
    uint64_t length = 1;
    while (length < n && piece->frames[length] == piece->frames[0] + (uint32_t)length)
        length++;
    return length;
}

/*
 * The frames are mapped beforehand, where that is worth what it takes, two mappings among it.  No others are:
 * to touch a frame that is free would give it memory.
 */
static void make_ready(struct merger *merger, const struct piece *piece, uint64_t n)
{
    const struct store *store = &merger->pages->store;
    n = row_length(piece, n);
    if (n < READY_LEAST || may_be_one_entry(merger, piece) || !budget_has_room(&merger->budget, 4))
        return;
    ready_make(&merger->fz, page_address(merger->pages, piece->page), n, store->memfd,
               frame_offset(store, piece->frames[0]));
}

/*
 * Freezes, compares and maps pages whose frames have been joined; how many were frozen, or -errno
 * if none was.
 */
static int64_t exchange_piece(struct merger *merger, struct piece *piece, uint64_t n)
{
    const uint8_t *view;
    make_ready(merger, piece, n);
    int64_t frozen = freeze(&merger->fz, page_address(merger->pages, piece->page), n, &view);
    if (frozen > 0) {
        piece->n = (uint64_t)frozen;
        compare(merger, piece, view);
        int error = exchange(merger, piece);
        thaw(&merger->fz);
        settle(merger, piece, error);
    }
    ready_end(&merger->fz);
    return frozen;
}

void piece_begin(struct piece *piece, uint32_t page, uint32_t frame, uint64_t n)
{
    piece->page = page;
    for (uint64_t i = 0; i < n && i < FREEZE_HUGE; i++)
        piece->frames[i] = frame + (uint32_t)i;
}

uint64_t merge_piece(struct merger *merger, struct piece *piece, uint64_t n, bool joined)
{
    uint64_t reach = freeze_reach(&merger->fz, page_address(merger->pages, piece->page), n);
    uint64_t own = own_memory(merger->pages, piece->page, reach);
    int64_t held = joined ? (int64_t)own : -ECANCELED, got = -ECANCELED;
    budget_has_room_recounted(&merger->budget, 2); /* now: exchange() cannot count mappings */
    need_shadow(merger, piece->page);
    if (own && !joined)
        held = join_frames(merger->pages, piece->frames[0], own);
    if (held < 0)
        return refuse(merger, piece, 1, (int)held);
    if (own)
        got = exchange_piece(merger, piece, (uint64_t)held);
    uint64_t frozen = got < 0 ? 0 : (uint64_t)got;
    /* EINVAL: the memory is locked.  In both cases the next pages fare no better. */
    bool alike = got == -EINVAL || got == FREEZE_LATER;
    uint64_t done = frozen ? frozen : alike ? (uint64_t)held : 1;
    leave_frames(merger->pages, piece->frames + frozen, (joined ? done : (uint64_t)held) - frozen);
    return frozen ? frozen : refuse(merger, piece, done, alike ? -EBUSY : (int)got);
}
