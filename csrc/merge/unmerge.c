/*
 * Unmerging: overlays become anonymous memory again.  What is an overlay is
 * asked of /proc/self/maps and never of our records: memory that was unmapped
 * or replaced behind our back must not be touched.
 */
#include "merge/unmerge.h"

#include <errno.h>

#include "base/pages.h"
#include "freeze/freezer.h"
#include "freeze/removal_thread.h"
#include "merge/bar.h"
#include "merge/budget.h"
#include "merge/memory.h"
#include "merge/merger.h"
#include "os/arena.h"
#include "os/clock.h"
#include "os/map.h"
#include "os/proc_maps.h"
#include "pages/candidates.h"
#include "pages/lost.h"
#include "pages/overlay.h"
#include "pages/pages.h"
#include "pages/records.h"
#include "pages/regions.h"
#include "pages/sharing.h"
#include "store/frames.h"
#include "store/store.h"

#define TRIES 256 /* how often pages whose owner changes mappings meanwhile are tried anew */

struct span {
    uintptr_t start, end;
};

/*
 * An owner may have exchanged overlays with each other (mremap).  Such a page maps another frame
 * than its record says, and the record's frame may be mapped elsewhere: it must not be freed.
 */
static void keep_exchanged(struct pages *pages, const struct region *region,
                           const struct os_vma *vma, struct span part)
{
    uint32_t id = region->base + (uint32_t)((part.start - region->address) >> PAGE_SHIFT);
    uint64_t offset = vma->offset + (part.start - vma->start);
    for (uintptr_t at = part.start; at < part.end; at += PAGE_SIZE, offset += PAGE_SIZE, id++)
        if (is_shared(pages, id) &&
            frame_offset(&pages->store, page_record(pages, id)->link) != offset)
            page_keep_frame(pages, id);
}

/*
 * The next stretch of overlay mappings of a region in [at, end): 1 found, 0 none, or -errno.  One
 * that its owner has protected is none, and the region is left alone from then on: its pages are
 * about to be forgotten, and when they are writable again they would be taken for memory of its
 * own.
 */
static int next_overlay(struct pages *pages, uint32_t region, uintptr_t at, uintptr_t end,
                        struct span *span)
{
    struct os_vma vma;
    *span = (struct span){0, 0};
    while (at < end) {
        int found = os_maps_find(&pages->maps, at, &vma);
        if (found < 0)
            return found;
        bool more = found && vma.start < end && (!span->end || vma.start <= span->end);
        if (more && shows_store(pages, &vma) && !is_overlay(pages, &vma))
            lose_region(pages, region);
        if (more && is_overlay(pages, &vma)) {
            if (!span->end)
                span->start = vma.start > at ? vma.start : at;
            span->end = vma.end < end ? vma.end : end;
            keep_exchanged(pages, region_at(pages, region), &vma,
                           (struct span){vma.start > at ? vma.start : at, span->end});
        } else if (span->end || !more) {
            break;
        }
        at = vma.end;
    }
    return span->end != 0;
}

/*
 * Looks for exchanged overlays once more, right before a piece comes back.  What is exchanged in
 * the microseconds after this look is not noticed.
 */
static void look_again(struct pages *pages, const struct region *region, struct span piece)
{
    struct os_vma vma;
    os_maps_refresh(&pages->maps);
    for (uintptr_t at = piece.start; at < piece.end; at = vma.end) {
        if (os_maps_find(&pages->maps, at, &vma) <= 0 || vma.start >= piece.end)
            return;
        struct span part = {vma.start > at ? vma.start : at,
                            vma.end < piece.end ? vma.end : piece.end};
        if (is_overlay(pages, &vma))
            keep_exchanged(pages, region, &vma, part);
    }
}

/* How a page leaves its frame: page_unshare() or page_abandon(). */
typedef void leave(struct pages *pages, uint32_t id, enum page_state state);

static void forget(struct pages *pages, const struct region *region, struct span span,
                   enum page_state state, leave *how)
{
    uint32_t id = region->base + (uint32_t)((span.start - region->address) >> PAGE_SHIFT);
    for (uintptr_t at = span.start; at < span.end; at += PAGE_SIZE, id++)
        if (is_shared(pages, id))
            how(pages, id, state);
}

/* Brings the records up to date: these pages are no overlays any more, and leave their frames. */
static void forget_sharing(struct pages *pages, const struct region *region, struct span span,
                           enum page_state state)
{
    forget(pages, region, span, state, page_unshare);
}

/*
 * There is no overlay where the records say so: its owner has unmapped it, or moved it somewhere.
 * Since it may still be mapped there, its frame is pinned.
 */
static void forget_lost(struct pages *pages, const struct region *region, struct span span,
                        enum page_state state)
{
    forget(pages, region, span, state, page_abandon);
}

/*
 * An address's place in the region's shadow, or 0: in a forked child the shadow may not be mapped.
 */
static uintptr_t in_shadow(const struct pages *pages, const struct region *region, uintptr_t at)
{
    return region->shadow && !pages->forked ? region->shadow + (at - region->address) : 0;
}

static uint64_t pages_between(uintptr_t start, uintptr_t end)
{
    return (end - start) >> PAGE_SHIFT;
}

/*
 * The pages stay merged.  Tracking has told what was written there and will not tell again, so they
 * are to be looked at one by one in the next pass.
 */
static void stay_merged(struct pages *pages, const struct region *region, uintptr_t start,
                        uintptr_t end)
{
    mark_untracked(pages, region->base + (uint32_t)pages_between(region->address, start),
                   pages_between(start, end));
}

/* How many pages from an address on, up to an end, come back in one step. */
static uint64_t piece_length(const struct merger *merger, const struct region *region, uintptr_t at,
                             uintptr_t end)
{
    uint64_t n = pages_between(at, end), rest = pages_to_huge(at);
    uintptr_t blank = in_shadow(merger->pages, region, at);
    if (rest == HUGE_PAGES && n >= HUGE_PAGES &&
        freezer_comes_back_huge(&merger->fz, at, blank, region->vma_flags))
        return HUGE_PAGES;
    n = least(n, rest);
    return least(n, FREEZE_MAX);
}

/*
 * The length of the next piece of a stretch.  Pieces but the first are looked at again, since the
 * look at the whole stretch may be long ago by then.
 */
static uint64_t next_piece(struct merger *merger, const struct region *region, struct span stretch,
                           uintptr_t at)
{
    uint64_t n = piece_length(merger, region, at, stretch.end);
    if (at > stretch.start)
        look_again(merger->pages, region, (struct span){at, at + bytes_of(n)});
    return n;
}

static int unmerge_small_pieces(struct merger *merger, const struct region *region,
                                struct span span, enum page_state state, bool insists);

/* insists: see freezer_unoverlay(). */
static int unmerge_piece(struct merger *merger, const struct region *region, uintptr_t at,
                         uint64_t n, enum page_state state, bool insists)
{
    struct span piece = {at, at + bytes_of(n)};
    uintptr_t blank = in_shadow(merger->pages, region, at);
    int error = freezer_unoverlay(&merger->fz, at, n, blank, region->vma_flags, insists);
    bool torn = !error && blank && merger->fz.moved_for_good;
    if (torn) /* its shadow has a hole now, and is never touched again */
        region_at(merger->pages, region_of(merger->pages, region->base))->shadow = 0;
    if (error == -ENOENT && n > FREEZE_MAX)
        return unmerge_small_pieces(merger, region, piece, state, insists);
    if (error)
        stay_merged(merger->pages, region, piece.start, piece.end);
    else
        forget_sharing(merger->pages, region, piece, state);
    return error;
}

static int unmerge_small_pieces(struct merger *merger, const struct region *region,
                                struct span span, enum page_state state, bool insists)
{
    int failure = 0;
    for (uint64_t n; span.start < span.end; span.start += bytes_of(n)) {
        n = least(pages_between(span.start, span.end), FREEZE_MAX);
        int error = unmerge_piece(merger, region, span.start, n, state, insists);
        failure = failure ? failure : error;
    }
    return failure;
}

static int unmerge_span(struct merger *merger, const struct region *region, struct span span,
                        enum page_state state)
{
    int failure = 0;
    uintptr_t at = span.start;
    if (coming_back_is_barred(merger)) {
        stay_merged(merger->pages, region, span.start, span.end);
        return -EBUSY;
    }
    for (uint64_t n; at < span.end; at += bytes_of(n)) {
        n = next_piece(merger, region, span, at);
        int error = unmerge_piece(merger, region, at, n, state, false);
        failure = failure ? failure : error;
    }
    return failure;
}

/* ---- what owners have given back ---- */

/* Their owner has given these pages back: they are anonymous memory, and get the region's flags. */
static void follow_removed(struct pages *pages, const struct region *region,
                           const struct removed *removed)
{
    uintptr_t end = region->address + bytes_of(region->n);
    struct span span = {removed->start > region->address ? removed->start : region->address,
                        removed->end < end ? removed->end : end};
    if (span.start >= span.end)
        return;
    struct os_vma vma = {.start = removed->start, .offset = removed->offset};
    keep_exchanged(pages, region, &vma, span);
    forget_sharing(pages, region, span, PAGE_NEW);
    if (!region->lost)
        os_set_vma_flags(span.start, pages_between(span.start, span.end), region->vma_flags);
}

/* There was no room to note what was given back: finds it by the mappings that are no overlays. */
static void follow_mappings(struct pages *pages, uint32_t id)
{
    const struct region *region = region_at(pages, id);
    uintptr_t at = region->address, end = at + bytes_of(region->n);
    struct span span;
    int found;
    os_maps_refresh(&pages->maps);
    while ((found = next_overlay(pages, id, at, end, &span)) > 0) {
        forget_lost(pages, region, (struct span){at, span.start}, PAGE_NEW);
        at = span.end;
    }
    if (found == 0)
        forget_lost(pages, region, (struct span){at, end}, PAGE_NEW);
}

void follow_removals(struct merger *merger)
{
    struct pages *pages = merger->pages;
    struct removed removed;
    while (freezer_removed(&merger->fz, &removed))
        EACH_REGION (pages, id)
            follow_removed(pages, region_at(pages, id), &removed);
    if (freezer_removed_more(&merger->fz))
        EACH_REGION (pages, id)
            follow_mappings(pages, id);
}

static int unmerge_once(struct merger *merger, uint32_t id, uint64_t first, uint64_t n,
                        enum page_state state)
{
    const struct region *region = region_at(merger->pages, id);
    uintptr_t at = region->address + bytes_of(first), end = at + bytes_of(n);
    struct span span;
    int failure = 0, found;
    follow_removals(merger);
    os_maps_refresh(&merger->pages->maps);
    while ((found = next_overlay(merger->pages, id, at, end, &span)) > 0) {
        forget_lost(merger->pages, region, (struct span){at, span.start}, state);
        int error = unmerge_span(merger, region, span, state);
        failure = failure ? failure : error;
        at = span.end;
    }
    if (found < 0)
        return failure ? failure : found;
    forget_lost(merger->pages, region, (struct span){at, end}, state);
    return failure;
}

/* Tries again where the memory was not what it had been at the look a moment before (ESTALE). */
int unmerge_pages(struct merger *merger, uint32_t id, uint64_t first, uint64_t n,
                  enum page_state state)
{
    int error = unmerge_once(merger, id, first, n, state);
    for (int tries = 0; error == -ESTALE && tries < TRIES; tries++)
        error = unmerge_once(merger, id, first, n, state);
    return error;
}

int unmerge_run(struct merger *merger, uint32_t page, uint64_t n)
{
    uint32_t id = region_of(merger->pages, page);
    if (!budget_has_room_recounted(&merger->budget, UNMERGE_MAPPINGS))
        return -EDQUOT;
    merger->budget.mappings += UNMERGE_MAPPINGS;
    unmerge_pages(merger, id, page - region_at(merger->pages, id)->base, n, PAGE_SEEN);
    return 0;
}

/* ---- a whole region, in slices ---- */

#define IO_TRIES 500 /* how many milliseconds a release waits for direct I/O into its pages */
#define PATIENCE 20 /* how many of them for system calls on them that would fail */

static void note(struct unmerging *work, int error)
{
    work->failure = work->failure ? work->failure : error;
}

void unmerging_begin(struct pages *pages, struct unmerging *work, uint32_t region, bool discard)
{
    *work = (struct unmerging){.region = region,
                               .serial = region_at(pages, region)->serial,
                               .discard = discard,
                               .io_tries = IO_TRIES};
    region_at(pages, region)->leaving++;
}

void unmerging_end(struct pages *pages, const struct unmerging *work)
{
    if (region_is(pages, work->region, work->serial) && region_at(pages, work->region)->leaving)
        region_at(pages, work->region)->leaving--; /* it is 0 in a child, where nobody was at it */
}

/*
 * All pages but shared ones become NEW and leave the index, so that no other page is merged with
 * them meanwhile.  Zero pages keep their state until they have been unmerged, unless nobody needs
 * them.
 */
static void forget_pages(struct pages *pages, const struct unmerging *work, uint64_t first,
                         uint64_t end)
{
    const struct region *region = region_at(pages, work->region);
    bool shared = false, keeps_zeros = !work->discard && !region->lost;
    for (uint64_t i = first; i < end; i++) {
        uint32_t id = region->base + (uint32_t)i;
        enum page_state state = page_state(page_record(pages, id));
        shared |= state == PAGE_SHARED;
        if (state == PAGE_SHARED || (state == PAGE_ZERO && keeps_zeros))
            continue;
        page_withdraw(pages, id);
        if (state != PAGE_NEW)
            page_become(pages, id, PAGE_NEW, NO_INDEX);
        page_set_age(page_record(pages, id), 0);
        page_set_skip(page_record(pages, id), 0);
    }
    if (!shared)
        chunk_of(pages, region->base + (uint32_t)first)->untracked = false;
}

/*
 * Gives zero pages memory of their own in place, by breaking copy-on-write.  Where their owner has
 * installed guards (MADV_GUARD_INSTALL) nothing can be, nor come back.
 */
static int bring_zeros(struct merger *merger, uintptr_t address, uint64_t n)
{
    if (!memory_allows(merger, n))
        return -ENOMEM;
    int error = os_populate(address, n, true);
    return error == -EFAULT ? 0 : error;
}

static void unmerge_zeros(struct merger *merger, struct unmerging *work, uint64_t first,
                          uint64_t end)
{
    const struct region *region = region_at(merger->pages, work->region);
    for (uint64_t i = first, n; i < end; i += n ? n : 1) {
        for (n = 0; i + n < end; n++)
            if (page_state(page_record(merger->pages, region->base + (uint32_t)(i + n))) !=
                PAGE_ZERO)
                break;
        int error = n ? bring_zeros(merger, region->address + bytes_of(i), n) : 0;
        note(work, error);
        for (uint64_t k = 0; k < n && !error; k++)
            page_become(merger->pages, region->base + (uint32_t)(i + k), PAGE_NEW, NO_INDEX);
    }
}

/* Are all of these pages, which were overlays at the last look, overlays still? */
static bool are_overlays(struct pages *pages, uintptr_t at, uintptr_t end)
{
    struct os_vma vma;
    os_maps_refresh(&pages->maps);
    for (; at < end; at = vma.end)
        if (os_maps_find(&pages->maps, at, &vma) <= 0 || vma.start > at || !is_overlay(pages, &vma))
            return false;
    return true;
}

/* A piece of a stretch of overlays; false: it has to be tried again. */
static bool give_piece_back(struct merger *merger, struct unmerging *work, uintptr_t at, uint64_t n)
{
    const struct region *region = region_at(merger->pages, work->region);
    work->no_memory |= !memory_allows(merger, n);
    if (work->no_memory) {
        stay_merged(merger->pages, region, at, at + bytes_of(n));
        note(work, -ENOMEM);
        return true;
    }
    bool insists = work->io_tries + PATIENCE <= IO_TRIES;
    int error = unmerge_piece(merger, region, at, n, PAGE_NEW, insists);
    if (error == -ESTALE && work->vain_tries++ < TRIES) /* its owner has given it back meanwhile */
        return false;
    work->vain_tries = 0;
    work->waits = error == -EBUSY && work->io_tries > 0;
    work->io_tries -= work->waits;
    if (!work->waits)
        note(work, error);
    work->vanished |= error && !are_overlays(merger->pages, at, at + bytes_of(n));
    return !work->waits;
}

/*
 * The end of the huge page's place that this place is inside of, or of the region if that is less.
 */
static uintptr_t end_of_huge(const struct region *region, uintptr_t place)
{
    uintptr_t end = region->address + bytes_of(region->n);
    uintptr_t next = place + bytes_of(pages_to_huge(place) % HUGE_PAGES);
    return next < end ? next : end;
}

/* Is the slice over?  It is long before its time where somebody waits. */
static bool is_over(const struct merger *merger, uint64_t deadline)
{
    return os_now_ns() >= deadline || merger_is_awaited(merger);
}

/*
 * Unmerges from work->page to the last page, and beyond that to the end of a huge page's place;
 * false: the slice is over before that.
 */
static bool unmerge_until(struct merger *merger, struct unmerging *work, uint64_t last,
                          uint64_t deadline)
{
    const struct region *region = region_at(merger->pages, work->region);
    uintptr_t at = region->address + bytes_of(work->page), stop = region->address + bytes_of(last);
    uintptr_t end = end_of_huge(region, stop);
    struct span span;
    int found = 0;
    while (at < stop && (found = next_overlay(merger->pages, work->region, at, end, &span)) > 0) {
        forget_lost(merger->pages, region, (struct span){at, span.start}, PAGE_NEW);
        for (at = span.start; at < span.end && at < stop;) {
            uint64_t n = next_piece(merger, region, span, at);
            bool done = give_piece_back(merger, work, at, n);
            at += done ? bytes_of(n) : 0;
            work->page = pages_between(region->address, at);
            if (!done || (at < stop && is_over(merger, deadline)))
                return false;
        }
    }
    note(work, found < 0 ? found : 0);
    if (!found)
        forget_lost(merger->pages, region, (struct span){at, end}, PAGE_NEW);
    return true;
}

/*
 * Replaces overlays by fresh memory.  To replace a part of a mapping takes one more and may be
 * refused where the whole of it is not.  If that fails as well the frames are pinned: a leaked
 * frame is better than one that is freed and still mapped.
 */
static void discard_until(struct pages *pages, struct unmerging *work, uint64_t last)
{
    const struct region *region = region_at(pages, work->region);
    uintptr_t at = region->address + bytes_of(work->page), end = region->address + bytes_of(last);
    uintptr_t whole = region->address + bytes_of(region->n);
    struct span span;
    while (region->pages_in[PAGE_SHARED] && next_overlay(pages, work->region, at, end, &span) > 0) {
        forget_lost(pages, region, (struct span){at, span.start}, PAGE_NEW);
        int error =
            os_map_anonymous(span.start, pages_between(span.start, span.end), region->vma_flags);
        if (error && span.end == end && end < whole &&
            next_overlay(pages, work->region, span.start, whole, &span) > 0)
            error = os_map_anonymous(span.start, pages_between(span.start, span.end),
                                     region->vma_flags);
        if (error)
            forget_lost(pages, region, span, PAGE_NEW);
        else
            forget_sharing(pages, region, span, PAGE_NEW);
        at = span.end;
        if (at >= end)
            return;
    }
    if (region->pages_in[PAGE_SHARED])
        forget_lost(pages, region, (struct span){at, end}, PAGE_NEW);
}

/* Unmerges the rest of a chunk of the region; false: the slice was over before. */
static bool give_chunk_back(struct merger *merger, struct unmerging *work, uint64_t deadline)
{
    const struct region *region = region_at(merger->pages, work->region);
    uint64_t first = work->page & ~(CHUNK - 1), end = least(first + CHUNK, region->n);
    forget_pages(merger->pages, work, first, end);
    if (work->discard)
        discard_until(merger->pages, work, end);
    else if (!unmerge_until(merger, work, end, deadline))
        return false;
    if (region->pages_in[PAGE_ZERO] && !work->discard && !region->lost)
        unmerge_zeros(merger, work, first, end);
    forget_pages(merger->pages, work, first, end);
    work->page = work->page > end ? work->page : end;
    return true;
}

bool unmerging_step(struct merger *merger, struct unmerging *work)
{
    uint64_t deadline = slice_end(merger->pages);
    merger->slice_began_ns = os_now_ns();
    if (!region_is(merger->pages, work->region, work->serial)) {
        work->failure = -ENOENT;
        return false;
    }
    const struct region *region = region_at(merger->pages, work->region);
    work->waits = false;
    follow_removals(merger);
    os_maps_refresh(&merger->pages->maps);
    bool more = work->page < region->n;
    while (more && give_chunk_back(merger, work, deadline)) {
        store_flush(&merger->pages->store); /* before the look at the clock, as it takes long too */
        more = work->page < region->n && !is_over(merger, deadline);
    }
    store_flush(&merger->pages->store);
    return work->page < region->n;
}

#define LOOKS 3 /* how often a region is gone through while its owner changes its mappings */

bool unmerging_again(struct merger *merger, struct unmerging *work)
{
    bool given_up = !work->failure || ++work->looks == LOOKS;
    if (given_up || !region_is(merger->pages, work->region, work->serial))
        return false;
    bool was_lost = region_at(merger->pages, work->region)->lost;
    check_lost_region(merger->pages, work->region);
    if (!work->vanished && region_at(merger->pages, work->region)->lost == was_lost)
        return false;
    work->vanished = work->no_memory = false;
    work->page = 0;
    work->failure = 0;
    return true;
}
