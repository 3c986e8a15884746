/*
 * Pages onto frames, old and new.  New frames are filled from the live page before it is frozen; if
 * it is written meanwhile the comparison fails.
 */
#include "merge/onto_frames.h"

#include <errno.h>

#include "base/pages.h"
#include "freeze/freezer.h"
#include "freeze/registration.h"
#include "merge/exchange.h"
#include "merge/merger.h"
#include "merge/publish.h"
#include "merge/rest.h"
#include "merge/run.h"
#include "os/guard.h"
#include "os/map.h"
#include "os/pagemap.h"
#include "pages/pages.h"
#include "pages/records.h"
#include "store/extents.h"
#include "store/frames.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/pool.h"
#include "store/room.h"
#include "store/sharers.h"
#include "store/stable.h"
#include "store/store.h"

/*
 * The shortest run, in pages, whose overlays are tracked: to register one takes as long as to look
 * at 50 pages in each pass.
 */
#define TRACKED_RUN 32

/*
 * Faults overlays in, so that later readers need not.  step: how many bytes one fault maps, for
 * kernels before 5.14, where the pages have to be touched.
 */
static void fault_in(uintptr_t address, uint64_t n, size_t step)
{
    if (os_populate(address, n, false) < 0)
        guard_touch(address, address + bytes_of(n), step);
}

/* How many pages there are to the start of the next huge page, of at most n. */
static uint64_t to_next_huge(const struct pages *pages, uint32_t page, uint64_t n)
{
    return least(n, pages_to_huge(page_address(pages, page)));
}

/* Will the first touch map these 512 pages by one entry: do they lie on all of a huge extent? */
static bool is_mapped_at_once(const struct pages *pages, uint32_t page)
{
    uint32_t last = page + (uint32_t)HUGE_PAGES - 1;
    if (!is_shared(pages, page) || !is_shared(pages, last))
        return false;
    uint32_t frame = page_record(pages, page)->link;
    return frame % HUGE_PAGES == 0 && page_record(pages, last)->link == frame + HUGE_PAGES - 1 &&
           is_on_huge_page(&pages->store, frame);
}

/* Are they, as far as the first and the last page tell: was all of it made ready before it came here? */
static bool are_faulted_in(const struct merger *merger, uintptr_t address, uint64_t n)
{
    uint8_t first, last;
    int fd = merger->fz.pagemap_fd;
    return os_pages(fd, address, 1, &first) == 0 && first == OS_PAGE_FILE &&
           os_pages(fd, address + bytes_of(n - 1), 1, &last) == 0 && last == OS_PAGE_FILE;
}

/*
 * Faults in all pages by one call: where writes are tracked the kernel maps only one page at a
 * fault, which takes a reader twice as long for each.  Overlays that one entry will map are left
 * out: their reader has one fault for 512 pages, and until then they do not count as resident.
 */
static void fault_in_overlays(const struct merger *merger, uint32_t page, uint64_t n)
{
    for (uint64_t i = 0, part; i < n; i += part) {
        uint32_t id = page + (uint32_t)i;
        uintptr_t address = page_address(merger->pages, id);
        part = to_next_huge(merger->pages, id, n - i);
        bool at_once = part == HUGE_PAGES && is_mapped_at_once(merger->pages, id);
        if (!at_once && !are_faulted_in(merger, address, part))
            fault_in(address, part, bytes_of(FAULT_AROUND));
    }
}

/* Has writes to overlays tracked; short ones are looked at in each pass instead. */
static void track_overlays(struct merger *merger, uint32_t page, uint64_t n)
{
    if (n >= TRACKED_RUN &&
        freezer_track_overlay(&merger->fz, page_address(merger->pages, page), n) == 0)
        return;
    mark_untracked(merger->pages, page, n);
}

void track_merged(struct merger *merger, uint32_t page, uint64_t n)
{
    for (uint64_t i = 0, length; i < n; i += length) {
        uint32_t id = page + (uint32_t)i;
        length = pages_alike(merger->pages, id, n - i, PAGE_SHARED);
        if (is_shared(merger->pages, id))
            track_overlays(merger, id, length);
    }
}

void merged_scattered(struct merger *merger, uint32_t page, uint64_t n)
{
    fault_in(page_address(merger->pages, page), n, PAGE_SIZE);
    track_merged(merger, page, n);
}

uint64_t merge_onto_frames(struct merger *merger, uint32_t page, uint32_t frame, uint64_t n)
{
    struct piece piece;
    uint64_t done = 0;
    do {
        piece_begin(&piece, page + (uint32_t)done, frame + (uint32_t)done, n - done);
        done += merge_piece(merger, &piece, n - done, false);
    } while (done < n && !merger_is_awaited(merger));
    /* After all of them were mapped: a fault maps pages around it only within its own mapping. */
    fault_in_overlays(merger, page, done);
    return done;
}

static uint64_t row_from(const struct batch *batch, uint64_t i)
{
    uint64_t n = 1;
    while (i + n < batch->n && batch->onto[i + n] == batch->onto[i] + n)
        n++;
    return n;
}

/* The pages become the first sharers of filled frames, or sharers of older ones. */
static int promote_part(struct merger *merger, struct batch *batch)
{
    struct piece piece;
    publish_sums(merger->pages, batch);
    int error = publish_frames(merger->pages, batch);
    for (uint64_t i = 0, done; i < batch->n && !error; i += done) {
        uint64_t n = row_from(batch, i);
        piece_begin(&piece, batch->page + (uint32_t)i, batch->onto[i], n);
        done = merge_piece(merger, &piece, n, true);
    }
    return error;
}

/* Takes frames for a run that has none left of those taken before; false: there are none. */
static bool take_frames(struct pages *pages, struct run *run, uint32_t page, uint64_t n,
                        bool in_step)
{
    int node = (int)page_node(page_record(pages, page));
    uint64_t number = page_address(pages, page) >> PAGE_SHIFT;
    if (run->unfilled < run->taken_end)
        return true;
    uint32_t first = in_step ? store_take_in_step(&pages->store, node, number, &n, &run->raw)
                             : store_take(&pages->store, node, &n);
    if (first == NO_FRAME)
        return false;
    run->taken = run->unfilled = first;
    run->taken_end = first + (uint32_t)n;
    return true;
}

/* Makes the run's next frames, of pages up to the end of a huge page; how many, or -errno. */
static int64_t promote_some(struct merger *merger, struct run *run, uint32_t page, uint64_t n)
{
    struct store *store = &merger->pages->store;
    struct batch batch = {.taken = run->taken, .taken_end = run->taken_end, .page = page};
    batch.frame = run->unfilled;
    int64_t filled = store_fill(store, batch.frame, (const void *)page_address(merger->pages, page),
                                to_next_huge(merger->pages, page, n));
    if (filled == -ENOSPC)
        store_fills_up(store);
    if (filled <= 0)
        return filled;
    batch.n = (uint64_t)filled;
    int error = promote_part(merger, &batch);
    if (error)
        return error;
    run->unfilled += (uint32_t)filled;
    return filled;
}

static int promote_onto(struct merger *merger, struct run *run, uint32_t page, uint64_t *n,
                        bool in_step)
{
    uint64_t wanted = *n;
    int64_t got = 0;
    *n = 0;
    if (!take_frames(merger->pages, run, page, wanted, in_step))
        return -ENOMEM;
    if (run->raw)
        return 0;
    wanted = least(wanted, run->taken_end - run->unfilled);
    do {
        got = promote_some(merger, run, page + (uint32_t)*n, wanted - *n);
        *n += got > 0 ? (uint64_t)got : 0;
    } while (got > 0 && *n < wanted && !merger_is_awaited(merger));
    if (got <= 0 || *n == wanted)
        rest_give_frames_back(&merger->pages->store, run);
    fault_in_overlays(merger, page, *n);
    track_merged(merger, page, *n);
    return *n ? 0 : (int)got;
}

int promote(struct merger *merger, struct run *run, uint32_t page, uint64_t *n)
{
    return promote_onto(merger, run, page, n, true);
}

int promote_row(struct merger *merger, struct run *run, uint32_t page, uint64_t *n)
{
    return promote_onto(merger, run, page, n, false);
}
