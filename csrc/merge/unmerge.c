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

static int unmerge_span(ksmpy_engine *engine, const struct region *region, struct span span,
                        enum page_state state)
{
    int failure = 0;
    while (span.start < span.end) {
        uint64_t n = least(pages_between(span.start, span.end), FREEZE_MAX);
        if (state == PAGE_NEW && !memory_allows(engine, n)) { /* others were written already */
            stay_merged(engine, region, span.start, span.end);
            return -ENOMEM;
        }
        uintptr_t blank = in_shadow(engine, region, span.start);
        int error = freezer_unoverlay(&engine->fz, span.start, n, blank, region->vma_flags);
        for (; error == -EBUSY && state == PAGE_NEW && engine->io_tries; engine->io_tries--) {
            os_sleep_us(1000);
            error = freezer_unoverlay(&engine->fz, span.start, n, blank, region->vma_flags);
        }
        if (error) {
            stay_merged(engine, region, span.start, span.start + bytes_of(n));
            failure = failure ? failure : error;
        } else {
            forget_sharing(engine, region, (struct span){span.start, span.start + bytes_of(n)},
                           state);
        }
        span.start += bytes_of(n);
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

/* Placed zero pages become memory of their own, which breaking copy-on-write does in place. */
static int unmerge_zeros(ksmpy_engine *engine, const struct region *region)
{
    int failure = 0;
    for (uint64_t i = 0, n; i < region->n; i += n) {
        n = 0;
        while (n < CHUNK && i + n < region->n &&
               page_state(page_record(engine, region->base + (uint32_t)(i + n))) == PAGE_ZERO)
            n++;
        int error = !n ? 0
                    : !memory_allows(engine, n)
                        ? -ENOMEM
                        : os_populate(region->address + bytes_of(i), n, true);
        if (error)
            failure = error;
        for (uint64_t k = 0; k < n && !error; k++)
            page_become(engine, region->base + (uint32_t)(i + k), PAGE_NEW, NO_INDEX);
        n = n ? n : 1;
    }
    return failure;
}

/* Everything else is forgotten: the next pass begins from nothing. */
static void reset_pages(ksmpy_engine *engine, const struct region *region)
{
    for (uint64_t i = 0; i < region->n; i++) {
        uint32_t id = region->base + (uint32_t)i;
        enum page_state state = page_state(page_record(engine, id));
        if (state == PAGE_SHARED || state == PAGE_ZERO)
            continue; /* could not be unmerged */
        page_withdraw(engine, id);
        page_become(engine, id, PAGE_NEW, NO_INDEX);
        page_set_age(page_record(engine, id), 0);
        page_set_skip(page_record(engine, id), 0);
    }
    for (uint64_t i = 0; i < region->n && !region->pages_in[PAGE_SHARED]; i += CHUNK)
        chunk_of(engine, region->base + (uint32_t)i)->blind = false;
}

int unmerge_region(ksmpy_engine *engine, uint32_t id)
{
    const struct region *region = region_at(engine, id);
    int error = unmerge_pages(engine, id, 0, region->n, PAGE_NEW);
    int zeros = region->pages_in[PAGE_ZERO] && !region->lost ? unmerge_zeros(engine, region) : 0;
    reset_pages(engine, region);
    store_flush(&engine->store);
    return error ? error : zeros;
}

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

static void unmerge_written_chunk(ksmpy_engine *engine, uint32_t id, uint64_t first, uint64_t n)
{
    const struct region *region = region_at(engine, id);
    uint8_t kinds[CHUNK];
    if (page_kinds(engine, region->base + (uint32_t)first, n, kinds) < 0)
        return;
    for (uint64_t i = 0, length; i < n; i += length) {
        uint32_t page = region->base + (uint32_t)(first + i);
        enum page_state state = page_state(page_record(engine, page));
        length = 1;
        if (!was_written(engine, page, kinds[i]))
            continue;
        if (state == PAGE_ZERO) {
            page_become(engine, page, PAGE_SEEN, NO_INDEX);
            continue;
        }
        while (i + length < n && is_shared(engine, page + (uint32_t)length) &&
               was_written(engine, page + (uint32_t)length, kinds[i + length]))
            length++;
        unmerge_run(engine, page, length);
    }
}

void unmerge_written(ksmpy_engine *engine, uint32_t id)
{
    const struct region *region = region_at(engine, id);
    if (region->lost || (!region->pages_in[PAGE_SHARED] && !region->pages_in[PAGE_ZERO]))
        return;
    for (uint64_t at = 0; at < region->n; at += CHUNK)
        unmerge_written_chunk(engine, id, at, least(region->n - at, CHUNK));
}

/*
 * Fresh memory replaces the overlays. Where even that fails: better a leaked frame than a freed
 * one that is mapped.
 */
void discard_region(ksmpy_engine *engine, uint32_t id)
{
    const struct region *region = region_at(engine, id);
    uintptr_t at = region->address, end = at + bytes_of(region->n);
    struct span span;
    os_maps_refresh(&engine->maps);
    while (region->pages_in[PAGE_SHARED] && next_overlay(engine, id, at, end, &span) > 0) {
        forget_lost(engine, region, (struct span){at, span.start}, PAGE_NEW);
        if (os_map_anonymous(span.start, (span.end - span.start) >> PAGE_SHIFT,
                             region->vma_flags) == 0)
            forget_sharing(engine, region, span, PAGE_NEW);
        else
            forget_lost(engine, region, span, PAGE_NEW);
        at = span.end;
    }
    if (region->pages_in[PAGE_SHARED])
        forget_lost(engine, region, (struct span){at, end}, PAGE_NEW);
    store_flush(&engine->store);
}
