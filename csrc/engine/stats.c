/* Counters: an engine's, and a region's. */
#include <errno.h>
#include <stdatomic.h>

#include "base/pages.h"
#include "engine/locks.h"
#include "merge/merger.h"
#include "merge/plan.h"
#include "merge/written.h"
#include "os/clock.h"
#include "os/guard.h"
#include "os/proc_maps.h"
#include "pages/candidates.h"
#include "pages/pages.h"
#include "pages/regions.h"
#include "store/extents.h"
#include "store/frames.h"
#include "store/layout.h"
#include "store/pool.h"
#include "store/store.h"

/*
 * Gives written pages from address *at on back to their owner, for a slice; false: none is left.
 * An address, unlike a region's id, still says where to go on when regions have come and gone.
 */
static bool refresh_some(struct merger *merger, uintptr_t *at)
{
    uint32_t id = region_from(merger->pages, *at);
    if (id == NO_REGION)
        return false;
    const struct region *region = region_at(merger->pages, id);
    uint64_t first = region_page_from(region, *at);
    *at = region->address + bytes_of(unmerge_written(merger, id, first));
    return true;
}

/*
 * Gives all written pages back to their owners, so that the counters are exact, and keeps the
 * engine's lock: each time that it is asked for is a chance to wait for somebody's slice.
 */
static void refresh_and_lock(ksmpy_engine *engine)
{
    uintptr_t at = 0;
    sigset_t mask;
    guard_open(&mask);
    pthread_mutex_lock(&engine->refreshing);
    engine_lock(engine);
    struct counting counting = {slice_end(&engine->pages), 0};
    while (refresh_some(&engine->merger, &at)) {
        store_flush(&engine->pages.store);
        engine_end_count(engine, &counting);
    }
    pthread_mutex_unlock(&engine->refreshing);
    guard_close(&mask);
}

int ksmpy_refresh(ksmpy_engine *engine)
{
    if (engine->pages.forked)
        return -EPERM;
    refresh_and_lock(engine);
    engine_unlock(engine);
    return 0;
}

static uint64_t metadata_bytes(const ksmpy_engine *engine)
{
    return sizeof *engine + engine->pages.regions.committed * sizeof(struct region) +
           engine->pages.records.committed * sizeof(struct page) +
           engine->pages.chunk_records.committed * sizeof(struct chunk) +
           engine->pages.chunks.words.committed * sizeof(uint64_t) +
           engine->merger.plan.list.committed * sizeof(struct planned) +
           candidates_metadata_bytes(&engine->pages) + store_metadata_bytes(&engine->pages.store);
}

/*
 * Pages that are saved.  One page of each frame saves nothing; nor does a planned page, which has
 * joined a frame but still has its own memory, nor one that was written.
 */
static uint64_t pages_saved(const ksmpy_engine *engine)
{
    const struct store_head *head = engine->pages.store.head;
    uint64_t unsaved = head->shared_frames + plan_joined(&engine->merger.plan);
    unsaved += engine->pages.copies;
    return head->shared_pages - least(unsaved, head->shared_pages);
}

/* Those that share a frame: without the ones that were written. */
static uint64_t merging(const uint64_t *pages_in, uint64_t copies)
{
    return pages_in[PAGE_SHARED] - least(copies, pages_in[PAGE_SHARED]);
}

static void fill(const ksmpy_engine *engine, struct ksmpy_stats *out)
{
    const struct store_head *head = engine->pages.store.head;
    *out = (struct ksmpy_stats){
        .pages_shared = head->shared_frames,
        .pages_sharing = pages_saved(engine),
        .pages_unshared =
            engine->pages.pages_in[PAGE_WAITING] + engine->pages.pages_in[PAGE_PAIRED],
        .pages_volatile = engine->pages.pages_in[PAGE_SEEN] + engine->pages.pages_in[PAGE_REFUSED],
        .pages_scanned = engine->scanner.scanned,
        .pages_skipped = engine->scanner.skipped,
        .full_scans = engine->pages.full_scans,
        .ksm_zero_pages = engine->pages.pages_in[PAGE_ZERO],
        .pages_untouched = engine->pages.pages_in[PAGE_HOLE],
        .stable_node_chains = head->chains,
        .stable_node_dups = head->dups,
        .stale_frames = head->stale_frames,
        .huge_frames = huge_frames(&engine->pages.store),
        .spare_frames = head->spare_frames,
        .registered_pages = engine->pages.registered,
        .merging_pages = merging(engine->pages.pages_in, engine->pages.copies),
        .metadata_bytes = metadata_bytes(engine),
        .store_metadata_bytes = store_metadata_bytes(&engine->pages.store),
        .frame_bytes = store_bytes(&engine->pages.store),
        .vma_limit = engine->pages.knobs[KSMPY_KNOB_VMA_SHARE_PERCENT],
        .pages_busy = engine->merger.busy,
        .pages_no_budget = engine->merger.no_budget,
        .pages_no_memory = engine->merger.no_memory,
        .pages_differed = engine->merger.differed,
        .pages_lost = engine->pages.lost,
    };
}

/*
 * Reads all of /proc/self/maps, with no lock in hand.  If that cannot be opened (no descriptor is
 * free), the engine's own descriptor of it is read, under the lock.
 */
static uint64_t count_mappings(ksmpy_engine *engine)
{
    int64_t mappings = os_mappings();
    if (mappings < 0) {
        engine_lock(engine);
        mappings = os_maps_count(&engine->pages.maps);
        engine_unlock(engine);
    }
    return mappings > 0 ? (uint64_t)mappings : 0;
}

/* Reads the counters but vmas, with both locks, which are given back. */
static void read_and_unlock(ksmpy_engine *engine, struct ksmpy_stats *out)
{
    fill(engine, out);
    engine_unlock_with_store(engine);
    out->vma_limit = os_max_map_count() * out->vma_limit / 100; /* fill() has put the share there */
}

int ksmpy_counters(ksmpy_engine *engine, struct ksmpy_stats *out)
{
    int error = engine_lock_with_store(engine);
    if (!error)
        read_and_unlock(engine, out);
    return error;
}

int ksmpy_stats(ksmpy_engine *engine, struct ksmpy_stats *out)
{
    uint64_t mappings = count_mappings(engine);
    int error = ksmpy_counters(engine, out);
    if (!error)
        out->vmas = mappings;
    return error;
}

/*
 * Reads the counters and gives the engine's lock back, which the caller has.  Only where another
 * process has the store's lock it is asked for once more.
 */
static int count_and_unlock(ksmpy_engine *engine, struct ksmpy_stats *out)
{
    int error = engine_try_lock_store(engine);
    if (error) {
        engine_unlock(engine);
        return error == -EAGAIN ? ksmpy_counters(engine, out) : error;
    }
    read_and_unlock(engine, out);
    return 0;
}

int ksmpy_exact_stats(ksmpy_engine *engine, struct ksmpy_stats *out)
{
    if (engine->pages.forked)
        return -EPERM;
    uint64_t mappings = count_mappings(engine);
    refresh_and_lock(engine);
    int error = count_and_unlock(engine, out);
    if (!error)
        out->vmas = mappings;
    return error;
}

int ksmpy_store_full(ksmpy_engine *engine)
{
    engine_lock(engine);
    bool full = !engine->pages.forked && atomic_load(&engine->pages.store.head->full);
    engine_unlock(engine);
    return full;
}

/*
 * How many pages the region's pages from *first on save, as far as one slice goes.  A frame with k
 * sharers saves k - 1 pages, of which each sharer has an equal part.  The counts are read without
 * the store's lock: other processes change them meanwhile, so the result is an estimate.
 */
static double saved_pages(const struct pages *pages, const struct region *region, uint64_t *first,
                          uint64_t deadline)
{
    double saved = 0;
    for (; *first < region->n && (*first % CHUNK || os_now_ns() < deadline); ++*first) {
        const struct page *page = page_record(pages, region->base + (uint32_t)*first);
        uint32_t sharers =
            page_state(page) == PAGE_SHARED ? frame_at(&pages->store, page->link)->sharers : 0;
        saved += sharers ? 1.0 - 1.0 / sharers : 0;
    }
    return saved;
}

/* As the kernel counts ksm_rmap_items: pages that were visited, except those of zeros. */
static uint64_t rmap_items(const struct region *region)
{
    return region->n - region->pages_in[PAGE_NEW] - region->pages_in[PAGE_ZERO] -
           region->pages_in[PAGE_HOLE];
}

/* Counts in slices, so the first of what was counted may be out of date when the last is. */
static int count_region(ksmpy_engine *engine, uint32_t id, struct ksmpy_region_stats *out)
{
    const struct region *region = region_at(&engine->pages, id);
    struct counting counting = {slice_end(&engine->pages), 0};
    uint64_t serial = region->serial, first = 0;
    double saved = 0;
    while (first < region->n && region->pages_in[PAGE_SHARED]) {
        saved += saved_pages(&engine->pages, region, &first, counting.slice_end_ns);
        engine_end_count(engine, &counting);
        if (!region_is(&engine->pages, id, serial))
            return -ENOENT;
    }
    uint64_t rounded = (uint64_t)(saved + 0.5);
    *out = (struct ksmpy_region_stats){
        .rmap_items = rmap_items(region),
        .merging_pages = merging(region->pages_in, region->copies),
        .zero_pages = region->pages_in[PAGE_ZERO],
        .saved_pages = rounded - least(region->copies, rounded),
    };
    return 0;
}

int ksmpy_region_stats(ksmpy_engine *engine, uint32_t id, struct ksmpy_region_stats *out,
                       struct ksmpy_stats *of_engine)
{
    if (engine->pages.forked)
        return -EPERM;
    refresh_and_lock(engine);
    int error = region_is_known(&engine->pages, id) ? count_region(engine, id, out) : -ENOENT;
    if (!error)
        return count_and_unlock(engine, of_engine);
    engine_unlock(engine);
    return error;
}
