/* Merged pages that were written: their copies become memory of their own for good. */
#include "merge/written.h"

#include "base/pages.h"
#include "merge/kinds.h"
#include "merge/merger.h"
#include "merge/relief.h"
#include "merge/unmerge.h"
#include "os/arena.h"
#include "os/clock.h"
#include "os/pagemap.h"
#include "pages/pages.h"
#include "pages/records.h"
#include "pages/regions.h"

/* An overlay shows its frame, or nothing yet; anything else is a copy that a write made. */
static bool was_written(const struct pages *pages, uint32_t id, uint8_t kind)
{
    enum page_state state = page_state(page_record(pages, id));
    if (state == PAGE_SHARED)
        return kind == OS_PAGE_ANON || kind == OS_PAGE_COMMON;
    if (state == PAGE_ZERO) /* a copy that a forked child shares looks like the zero page */
        return kind == OS_PAGE_ANON || (kind == OS_PAGE_COMMON && !page_is_zero(pages, id));
    return false;
}

/* How many of at most n pages from that one on were written, if it was. */
static uint64_t written_run(struct pages *pages, uint32_t page, const uint8_t *kinds, uint64_t n)
{
    uint64_t length = 0;
    while (length < n && is_shared(pages, page + (uint32_t)length) &&
           was_written(pages, page + (uint32_t)length, kinds[length]))
        length++;
    return length;
}

static void note_copies(struct pages *pages, uint32_t id, uint64_t copies)
{
    pages->copies += copies - region_at(pages, id)->copies;
    region_at(pages, id)->copies = copies;
}

/* Of these pages those that share a frame are not saved. */
static void count_copies(struct pages *pages, uint32_t id, uint32_t page, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        region_at(pages, id)->counted += is_shared(pages, page + (uint32_t)i);
}

/*
 * Gives written pages back to their owner.  Those of which that cannot be done now share nothing
 * all the same, and are counted.
 */
static void give_back(struct merger *merger, uint32_t id, uint32_t page, uint64_t n)
{
    relief_unmerge_run(merger, page, n);
    count_copies(merger->pages, id, page, n);
}

/* Unmerges written pages of a chunk from first to end; returns where it is to go on. */
static uint64_t unmerge_written_chunk(struct merger *merger, uint32_t id, uint64_t first,
                                      uint64_t end, uint64_t deadline)
{
    const struct region *region = region_at(merger->pages, id);
    uint32_t from = region->base + (uint32_t)first;
    uint8_t kinds[CHUNK];
    if (page_kinds(merger, from, end - first, kinds) < 0) {
        /* A filter of system calls forbids to ask: nobody can tell which of them were written. */
        count_copies(merger->pages, id, from, end - first);
        return end;
    }
    for (uint64_t i = first, length; i < end; i += length) {
        uint32_t page = region->base + (uint32_t)i;
        bool zero = page_state(page_record(merger->pages, page)) == PAGE_ZERO;
        length = zero ? 0 : written_run(merger->pages, page, kinds + (i - first), end - i);
        if (zero && was_written(merger->pages, page, kinds[i - first]))
            page_become(merger->pages, page, PAGE_SEEN, NO_INDEX);
        if (length)
            give_back(merger, id, page, length);
        if (length && os_now_ns() >= deadline)
            return i + length;
        length += !length;
    }
    return end;
}

#define ASKED_AT_ONCE 8192 /* pages, in one system call */

/*
 * The first page, from first on and before end, that may be a copy; or end.  That takes a part of the
 * time of asking for each page's kind.
 */
static uint64_t skip_uncopied(const struct merger *merger, const struct region *region,
                              uint64_t first, uint64_t end)
{
    uintptr_t at = region->address + bytes_of(first);
    if (os_first_private(merger->fz.pagemap_fd, at, end - first, &at) < 0)
        return first;
    return least(region_page_from(region, at), end);
}

static uint64_t unmerge_written_part(struct merger *merger, uint32_t id, uint64_t first)
{
    const struct region *region = region_at(merger->pages, id);
    uint64_t deadline = slice_end(merger->pages);
    follow_removals(merger);
    if (region->lost || (!region->pages_in[PAGE_SHARED] && !region->pages_in[PAGE_ZERO]))
        return region->n;
    while (first < region->n && os_now_ns() < deadline) {
        uint64_t end = least(first + ASKED_AT_ONCE, region->n);
        first = skip_uncopied(merger, region, first, end);
        if (first == end)
            continue;
        end = least((first | (CHUNK - 1)) + 1, region->n);
        first = unmerge_written_chunk(merger, id, first, end, deadline);
    }
    return first;
}

uint64_t unmerge_written(struct merger *merger, uint32_t id, uint64_t first)
{
    struct region *region = region_at(merger->pages, id);
    if (!first)
        region->counted = 0;
    first = unmerge_written_part(merger, id, first);
    if (first == region->n)
        note_copies(merger->pages, id, region->counted);
    return first;
}
