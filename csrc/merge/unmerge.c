/*
 * Unmerging: overlays become anonymous memory again.  What is an overlay is
 * asked of /proc/self/maps and never of our records: memory that was unmapped
 * or replaced behind our back must not be touched.
 */
#include <errno.h>

#include "base/pages.h"
#include "engine/engine.h"
#include "freeze/freezer.h"
#include "ksmpy.h"
#include "os/arena.h"
#include "os/clock.h"
#include "os/map.h"
#include "os/maps.h"
#include "os/memory.h"
#include "os/pagemap.h"
#include "store/store.h"

struct span {
    uintptr_t start, end;
};

/*
 * Whose owner has exchanged overlays (mremap): they map other frames than the records say, and
 * those that the records say may be mapped by others.
 */
static void keep_exchanged(ksmpy_engine *engine, const struct region *region,
                           const struct os_vma *vma, struct span part)
{
    uint32_t id = region->base + (uint32_t)((part.start - region->address) >> PAGE_SHIFT);
    uint64_t offset = vma->offset + (part.start - vma->start);
    for (uintptr_t at = part.start; at < part.end; at += PAGE_SIZE, offset += PAGE_SIZE, id++)
        if (is_shared(engine, id) &&
            frame_offset(&engine->store, page_record(engine, id)->link) != offset)
            page_keep_frame(engine, id);
}

/*
 * The next stretch of overlay mappings of a region in [at, end): 1 found, 0 none, or -errno.  One
 * that its owner has protected is none, and the region is left alone from then on: its pages are
 * about to be forgotten, and when they are writable again they would be taken for memory of its own.
 */
static int next_overlay(ksmpy_engine *engine, uint32_t region, uintptr_t at, uintptr_t end,
                        struct span *span)
{
    struct os_vma vma;
    *span = (struct span){0, 0};
    while (at < end) {
        int found = os_maps_find(&engine->maps, at, &vma);
        if (found < 0)
            return found;
        bool more = found && vma.start < end && (!span->end || vma.start <= span->end);
        if (more && shows_store(engine, &vma) && !is_overlay(engine, &vma))
            lose_region(engine, region);
        if (more && is_overlay(engine, &vma)) {
            if (!span->end)
                span->start = vma.start > at ? vma.start : at;
            span->end = vma.end < end ? vma.end : end;
            keep_exchanged(engine, region_at(engine, region), &vma,
                           (struct span){vma.start > at ? vma.start : at, span->end});
        } else if (span->end || !more) {
            break;
        }
        at = vma.end;
    }
    return span->end != 0;
}

typedef void leave(ksmpy_engine *engine, uint32_t id, enum page_state state);

static void forget(ksmpy_engine *engine, const struct region *region, struct span span,
                   enum page_state state, leave *how)
{
    uint32_t id = region->base + (uint32_t)((span.start - region->address) >> PAGE_SHIFT);
    for (uintptr_t at = span.start; at < span.end; at += PAGE_SIZE, id++)
        if (is_shared(engine, id))
            how(engine, id, state);
}

/* Records follow the address space: these pages map no frame any more, least of all another's. */
static void forget_sharing(ksmpy_engine *engine, const struct region *region, struct span span,
                           enum page_state state)
{
    forget(engine, region, span, state, page_unshare);
}

/* No overlay is here, whatever the records say: its owner unmapped it, or moved it somewhere. */
static void forget_lost(ksmpy_engine *engine, const struct region *region, struct span span,
                        enum page_state state)
{
    forget(engine, region, span, state, page_abandon);
}

/* Where the shadow of a region has a place; a child's freezer does not know its parent's. */
static uintptr_t in_shadow(const ksmpy_engine *engine, const struct region *region, uintptr_t at)
{
    return region->shadow && !engine->forked ? region->shadow + (at - region->address) : 0;
}

void mark_blind(ksmpy_engine *engine, uint32_t id, uint64_t n)
{
    for (uint32_t at = id; at < id + n; at = (at | (CHUNK - 1)) + 1)
        chunk_of(engine, at)->blind = true;
}

#define RESERVE 2048 /* pages that are left to the program: 8 MiB */
#define ALLOWED 16384 /* pages at one answer */
#define GOOD_FOR_MS 100

/*
 * An answer is asked for once in some MiB.  It is for a part of what is left only: others may ask
 * at the same time.  What unmerging has freed so far is given back first.
 */
bool memory_allows(ksmpy_engine *engine, uint64_t n)
{
    uint64_t now = os_now_ms();
    if (engine->allowed < n || now - engine->allowed_ms > GOOD_FOR_MS) {
        store_flush(&engine->store);
        uint64_t left = os_memory_left(&engine->memory, NULL, 0);
        left = left > RESERVE ? left - RESERVE : 0;
        engine->allowed = left / 8 > n ? least(left / 8, ALLOWED) : least(left, n);
        engine->allowed_ms = now;
    }
    if (engine->allowed < n)
        return false;
    engine->allowed -= n;
    return true;
}

static uint64_t pages_between(uintptr_t start, uintptr_t end)
{
    return (end - start) >> PAGE_SHIFT;
}

/* Tracking told of what was written there, and will not do so again. */
static void stay_merged(ksmpy_engine *engine, const struct region *region, uintptr_t start,
                        uintptr_t end)
{
    mark_blind(engine, region->base + (uint32_t)pages_between(region->address, start),
               pages_between(start, end));
}

static int unmerge_piece(ksmpy_engine *engine, const struct region *region, uintptr_t at,
                         uint64_t n, enum page_state state)
{
    struct span piece = {at, at + bytes_of(n)};
    uintptr_t blank = in_shadow(engine, region, at);
    int error = freezer_unoverlay(&engine->fz, at, n, blank, region->vma_flags);
    if (error)
        stay_merged(engine, region, piece.start, piece.end);
    else
        forget_sharing(engine, region, piece, state);
    return error;
}

static int unmerge_span(ksmpy_engine *engine, const struct region *region, struct span span,
                        enum page_state state)
{
    int failure = 0;
    for (uint64_t n; span.start < span.end; span.start += bytes_of(n)) {
        n = least(pages_between(span.start, span.end), FREEZE_MAX);
        int error = unmerge_piece(engine, region, span.start, n, state);
        failure = failure ? failure : error;
    }
    return failure;
}

int unmerge_pages(ksmpy_engine *engine, uint32_t id, uint64_t first, uint64_t n,
                  enum page_state state)
{
    const struct region *region = region_at(engine, id);
    uintptr_t at = region->address + bytes_of(first), end = at + bytes_of(n);
    struct span span;
    int failure = 0, found;
    os_maps_refresh(&engine->maps);
    while ((found = next_overlay(engine, id, at, end, &span)) > 0) {
        forget_lost(engine, region, (struct span){at, span.start}, state);
        int error = unmerge_span(engine, region, span, state);
        failure = failure ? failure : error;
        at = span.end;
    }
    if (found < 0)
        return failure ? failure : found;
    forget_lost(engine, region, (struct span){at, end}, state);
    return failure;
}

bool unmerge_run(ksmpy_engine *engine, uint32_t page, uint64_t n)
{
    uint32_t id = region_of(engine, page);
    if (!budget_make_room(engine, 2)) {
        mark_blind(engine, page, n);
        return false;
    }
    engine->vmas += 2;
    unmerge_pages(engine, id, page - region_at(engine, id)->base, n, PAGE_SEEN);
    return true;
}

/* ---- a whole region, in slices ---- */

#define IO_TRIES 500 /* times a millisecond that direct I/O is waited for */
#define SLICE_OF_TEXT_NS                                                                           \
    (40 * SLICE_NS) /* where each slice reads its mappings from the first one */

static void note(struct unmerging *work, int error)
{
    work->failure = work->failure ? work->failure : error;
}

bool region_is(const ksmpy_engine *engine, uint32_t id, uint64_t serial)
{
    return id < engine->region_count && region_at(engine, id)->used &&
           region_at(engine, id)->serial == serial;
}

void unmerging_begin(ksmpy_engine *engine, struct unmerging *work, uint32_t region, bool discard)
{
    *work = (struct unmerging){.region = region,
                               .serial = region_at(engine, region)->serial,
                               .discard = discard,
                               .io_tries = IO_TRIES};
    region_at(engine, region)->leaving++;
}

void unmerging_end(ksmpy_engine *engine, const struct unmerging *work)
{
    if (region_is(engine, work->region, work->serial) && region_at(engine, work->region)->leaving)
        region_at(engine, work->region)->leaving--; /* in a child nobody was at it */
}

/*
 * Everything else is forgotten, so that nobody finds it: the next pass begins from nothing.  Zero
 * pages stay until they were unmerged, if that is to be.
 */
static void forget_pages(ksmpy_engine *engine, const struct unmerging *work, uint64_t first,
                         uint64_t end)
{
    const struct region *region = region_at(engine, work->region);
    bool shared = false, keeps_zeros = !work->discard && !region->lost;
    for (uint64_t i = first; i < end; i++) {
        uint32_t id = region->base + (uint32_t)i;
        enum page_state state = page_state(page_record(engine, id));
        shared |= state == PAGE_SHARED;
        if (state == PAGE_SHARED || (state == PAGE_ZERO && keeps_zeros))
            continue;
        page_withdraw(engine, id);
        if (state != PAGE_NEW)
            page_become(engine, id, PAGE_NEW, NO_INDEX);
        page_set_age(page_record(engine, id), 0);
        page_set_skip(page_record(engine, id), 0);
    }
    if (!shared)
        chunk_of(engine, region->base + (uint32_t)first)->blind = false;
}

/* Placed zero pages become memory of their own, which breaking copy-on-write does in place. */
static void unmerge_zeros(ksmpy_engine *engine, struct unmerging *work, uint64_t first,
                          uint64_t end)
{
    const struct region *region = region_at(engine, work->region);
    for (uint64_t i = first, n; i < end; i += n ? n : 1) {
        for (n = 0; i + n < end; n++)
            if (page_state(page_record(engine, region->base + (uint32_t)(i + n))) != PAGE_ZERO)
                break;
        int error = !n ? 0
                    : !memory_allows(engine, n)
                        ? -ENOMEM
                        : os_populate(region->address + bytes_of(i), n, true);
        note(work, error);
        for (uint64_t k = 0; k < n && !error; k++)
            page_become(engine, region->base + (uint32_t)(i + k), PAGE_NEW, NO_INDEX);
    }
}

/* A piece of a stretch of overlays; false: it has to be tried again. */
static bool give_piece_back(ksmpy_engine *engine, struct unmerging *work, uintptr_t at, uint64_t n)
{
    const struct region *region = region_at(engine, work->region);
    work->no_memory |= !memory_allows(engine, n);
    if (work->no_memory) { /* others were written already */
        stay_merged(engine, region, at, at + bytes_of(n));
        note(work, -ENOMEM);
        return true;
    }
    int error = unmerge_piece(engine, region, at, n, PAGE_NEW);
    work->waits = error == -EBUSY && work->io_tries > 0;
    work->io_tries -= work->waits;
    if (!work->waits)
        note(work, error);
    return !work->waits;
}

/* From work->page on; false: the slice is over before all were dealt with. */
static bool unmerge_until(ksmpy_engine *engine, struct unmerging *work, uint64_t last,
                          uint64_t deadline)
{
    const struct region *region = region_at(engine, work->region);
    uintptr_t at = region->address + bytes_of(work->page), end = region->address + bytes_of(last);
    struct span span;
    int found;
    while ((found = next_overlay(engine, work->region, at, end, &span)) > 0) {
        forget_lost(engine, region, (struct span){at, span.start}, PAGE_NEW);
        for (at = span.start; at < span.end;) {
            uint64_t n = least(pages_between(at, span.end), FREEZE_MAX);
            bool done = give_piece_back(engine, work, at, n);
            at += done ? bytes_of(n) : 0;
            work->page = pages_between(region->address, at);
            if (!done || (at < end && os_now_ns() >= deadline))
                return false;
        }
    }
    note(work, found);
    if (!found)
        forget_lost(engine, region, (struct span){at, end}, PAGE_NEW);
    return true;
}

/*
 * Fresh memory replaces the overlays. Where even that fails: better a leaked frame than a freed
 * one that is mapped.  A part of a mapping may be refused where the whole of it is not.
 */
static void discard_until(ksmpy_engine *engine, struct unmerging *work, uint64_t last)
{
    const struct region *region = region_at(engine, work->region);
    uintptr_t at = region->address + bytes_of(work->page), end = region->address + bytes_of(last);
    uintptr_t whole = region->address + bytes_of(region->n);
    struct span span;
    while (region->pages_in[PAGE_SHARED] &&
           next_overlay(engine, work->region, at, end, &span) > 0) {
        forget_lost(engine, region, (struct span){at, span.start}, PAGE_NEW);
        int error =
            os_map_anonymous(span.start, pages_between(span.start, span.end), region->vma_flags);
        if (error && span.end == end && end < whole &&
            next_overlay(engine, work->region, span.start, whole, &span) > 0)
            error = os_map_anonymous(span.start, pages_between(span.start, span.end),
                                     region->vma_flags);
        if (error)
            forget_lost(engine, region, span, PAGE_NEW);
        else
            forget_sharing(engine, region, span, PAGE_NEW);
        at = span.end;
        if (at >= end)
            return;
    }
    if (region->pages_in[PAGE_SHARED])
        forget_lost(engine, region, (struct span){at, end}, PAGE_NEW);
}

/* false: the slice is over before the chunk is. */
static bool give_chunk_back(ksmpy_engine *engine, struct unmerging *work, uint64_t deadline)
{
    const struct region *region = region_at(engine, work->region);
    uint64_t first = work->page & ~(CHUNK - 1), end = least(first + CHUNK, region->n);
    if (work->page == first)
        forget_pages(engine, work, first, end);
    if (work->discard)
        discard_until(engine, work, end);
    else if (!unmerge_until(engine, work, end, deadline))
        return false;
    if (region->pages_in[PAGE_ZERO] && !work->discard && !region->lost)
        unmerge_zeros(engine, work, first, end);
    forget_pages(engine, work, first, end);
    work->page = end;
    return true;
}

bool unmerging_step(ksmpy_engine *engine, struct unmerging *work)
{
    uint64_t slice = engine->maps.query ? SLICE_NS : SLICE_OF_TEXT_NS;
    uint64_t deadline = os_now_ns() + slice;
    if (!region_is(engine, work->region, work->serial)) {
        work->failure = -ENOENT;
        return false;
    }
    const struct region *region = region_at(engine, work->region);
    work->waits = false;
    os_maps_refresh(&engine->maps);
    while (work->page < region->n && give_chunk_back(engine, work, deadline))
        if (os_now_ns() >= deadline)
            break;
    store_flush(&engine->store);
    return work->page < region->n;
}

/* ---- pages that were written ---- */

/* An overlay shows its frame, or nothing yet; anything else is a copy that a write made. */
static bool was_written(const ksmpy_engine *engine, uint32_t id, uint8_t kind)
{
    enum page_state state = page_state(page_record(engine, id));
    if (state == PAGE_SHARED)
        return kind == OS_PAGE_ANON || kind == OS_PAGE_ZERO;
    if (state == PAGE_ZERO) /* a copy that a forked child shares looks like the zero page */
        return kind == OS_PAGE_ANON || (kind == OS_PAGE_ZERO && !page_is_zero(engine, id));
    return false;
}

/* How many of at most n pages from that one on were written, if it was. */
static uint64_t written_run(ksmpy_engine *engine, uint32_t page, const uint8_t *kinds, uint64_t n)
{
    uint64_t length = 0;
    while (length < n && is_shared(engine, page + (uint32_t)length) &&
           was_written(engine, page + (uint32_t)length, kinds[length]))
        length++;
    return length;
}

/* Of the chunk's pages from `first` to before `end`; where it goes on when the slice is over. */
static uint64_t unmerge_written_chunk(ksmpy_engine *engine, uint32_t id, uint64_t first,
                                      uint64_t end, uint64_t deadline)
{
    const struct region *region = region_at(engine, id);
    uint8_t kinds[CHUNK];
    if (page_kinds(engine, region->base + (uint32_t)first, end - first, kinds) < 0)
        return end;
    for (uint64_t i = first, length; i < end; i += length) {
        uint32_t page = region->base + (uint32_t)i;
        bool zero = page_state(page_record(engine, page)) == PAGE_ZERO;
        length = zero ? 0 : written_run(engine, page, kinds + (i - first), end - i);
        if (zero && was_written(engine, page, kinds[i - first]))
            page_become(engine, page, PAGE_SEEN, NO_INDEX);
        if (length)
            unmerge_run(engine, page, length);
        if (length && os_now_ns() >= deadline)
            return i + length;
        length += !length;
    }
    return end;
}

uint64_t unmerge_written(ksmpy_engine *engine, uint32_t id, uint64_t first)
{
    const struct region *region = region_at(engine, id);
    uint64_t deadline = os_now_ns() + SLICE_NS;
    if (region->lost || (!region->pages_in[PAGE_SHARED] && !region->pages_in[PAGE_ZERO]))
        return region->n;
    while (first < region->n && os_now_ns() < deadline) {
        uint64_t end = least((first | (CHUNK - 1)) + 1, region->n);
        first = unmerge_written_chunk(engine, id, first, end, deadline);
    }
    return first;
}
