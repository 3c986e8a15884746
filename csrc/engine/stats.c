/* Counters, and who shares with whom. */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/pages.h"
#include "engine/locks.h"
#include "merge/merger.h"
#include "merge/written.h"
#include "os/guard.h"
#include "os/maps.h"
#include "pages/candidates.h"
#include "pages/pages.h"
#include "pages/regions.h"
#include "store/frames.h"
#include "store/layout.h"
#include "store/pool.h"
#include "store/store.h"

/* In the order of addresses, whatever comes and goes meanwhile. */
static bool refresh_some(struct merger *merger, uintptr_t *at)
{
    uint32_t id = region_from(merger->pages, *at);
    if (id == NO_REGION)
        return false;
    const struct region *region = region_at(merger->pages, id);
    uint64_t first = *at > region->address ? (*at - region->address) >> PAGE_SHIFT : 0;
    *at = region->address + bytes_of(unmerge_written(merger, id, first));
    return true;
}

int ksmpy_refresh(ksmpy_engine *engine)
{
    uintptr_t at = 0;
    if (engine->pages.forked)
        return -EPERM;
    sigset_t mask;
    guard_open(&mask);
    engine_lock(engine);
    while (refresh_some(&engine->merger, &at)) {
        store_flush(&engine->pages.store);
        engine_let_others_in(engine);
    }
    engine_unlock(engine);
    guard_close(&mask);
    return 0;
}

static uint64_t metadata_bytes(const ksmpy_engine *engine)
{
    return sizeof *engine + engine->pages.regions.committed * sizeof(struct region) +
           engine->pages.records.committed * sizeof(struct page) +
           engine->pages.chunk_records.committed * sizeof(struct chunk) +
           engine->pages.chunks.words.committed * sizeof(uint64_t) +
           unstable_metadata_bytes(&engine->pages) + store_metadata_bytes(&engine->pages.store);
}

static void fill(ksmpy_engine *engine, struct ksmpy_stats *out)
{
    const struct store_head *head = engine->pages.store.head;
    int64_t vmas = os_maps_count(&engine->pages.maps);
    *out = (struct ksmpy_stats){
        .pages_shared = head->shared_frames,
        .pages_sharing = head->shared_pages - head->shared_frames,
        .pages_unshared =
            engine->pages.pages_in[PAGE_WAITING] + engine->pages.pages_in[PAGE_PAIRED],
        .pages_volatile = engine->pages.pages_in[PAGE_SEEN] + engine->pages.pages_in[PAGE_REFUSED],
        .pages_scanned = engine->scanner.scanned,
        .pages_skipped = engine->scanner.skipped,
        .full_scans = engine->pages.full_scans,
        .ksm_zero_pages = engine->pages.pages_in[PAGE_ZERO],
        .stable_node_chains = head->chains,
        .stable_node_dups = head->dups,
        .stale_frames = head->stale_frames,
        .registered_pages = engine->pages.registered,
        .merging_pages = engine->pages.pages_in[PAGE_SHARED],
        .metadata_bytes = metadata_bytes(engine),
        .frame_bytes = store_bytes(&engine->pages.store),
        .vmas = vmas > 0 ? (uint64_t)vmas : 0,
        .vma_limit = os_max_map_count() * engine->pages.knobs[KSMPY_KNOB_VMA_SHARE_PERCENT] / 100,
        .pages_busy = engine->merger.busy,
        .pages_no_budget = engine->merger.no_budget,
        .pages_no_memory = engine->merger.no_memory,
        .pages_differed = engine->merger.differed,
        .pages_lost = engine->pages.lost,
    };
}

int ksmpy_stats(ksmpy_engine *engine, struct ksmpy_stats *out)
{
    int error = engine_lock_with_store(engine);
    if (error)
        return error;
    fill(engine, out);
    engine_unlock_with_store(engine);
    return 0;
}

int ksmpy_store_full(ksmpy_engine *engine)
{
    engine_lock(engine);
    bool full = !engine->pages.forked && atomic_load(&engine->pages.store.head->full);
    engine_unlock(engine);
    return full;
}

/* A frame with k sharers saves k - 1 pages; each sharer has an equal part in that. */
static uint64_t saved_pages(const struct pages *pages, const struct region *region)
{
    double saved = 0;
    for (uint64_t i = 0; i < region->n; i++) {
        const struct page *page = page_record(pages, region->base + (uint32_t)i);
        if (page_state(page) == PAGE_SHARED)
            saved += 1.0 - 1.0 / frame_at(&pages->store, page->link)->sharers;
    }
    return (uint64_t)(saved + 0.5);
}

/* As the kernel counts them: pages of their owner's that were visited. */
static uint64_t rmap_items(const struct region *region)
{
    return region->n - region->pages_in[PAGE_NEW] - region->pages_in[PAGE_ZERO] -
           region->pages_in[PAGE_HOLE];
}

int ksmpy_region_stats(ksmpy_engine *engine, uint32_t id, struct ksmpy_region_stats *out)
{
    int error = engine_lock_with_store(engine);
    if (error)
        return error;
    if (region_is_known(&engine->pages, id)) {
        const struct region *region = region_at(&engine->pages, id);
        *out = (struct ksmpy_region_stats){rmap_items(region), region->pages_in[PAGE_SHARED],
                                           region->pages_in[PAGE_ZERO],
                                           saved_pages(&engine->pages, region)};
    } else {
        error = -ENOENT;
    }
    engine_unlock_with_store(engine);
    return error;
}

/* ---- shares ---- */

struct entry { /* pages of a region on a frame; or common pages of two regions */
    uint64_t key;
    uint64_t pages;
};

struct entries {
    struct entry *list;
    size_t count, room;
};

static int by_key(const void *a, const void *b)
{
    uint64_t x = ((const struct entry *)a)->key, y = ((const struct entry *)b)->key;
    return x < y ? -1 : x > y;
}

/* Sorts, and adds up entries of one key. */
static void add_up(struct entries *entries)
{
    size_t kept = 0;
    if (entries->count)
        qsort(entries->list, entries->count, sizeof *entries->list, by_key);
    for (size_t i = 0; i < entries->count; i++) {
        if (kept && entries->list[kept - 1].key == entries->list[i].key)
            entries->list[kept - 1].pages += entries->list[i].pages;
        else
            entries->list[kept++] = entries->list[i];
    }
    entries->count = kept;
}

static bool push(struct entries *entries, uint64_t key, uint64_t pages)
{
    if (entries->count == entries->room) {
        add_up(entries);
        if (entries->count * 2 >= entries->room) {
            size_t room = entries->room ? entries->room * 2 : 1024;
            struct entry *list = realloc(entries->list, room * sizeof *list);
            if (!list)
                return false;
            entries->list = list;
            entries->room = room;
        }
    }
    entries->list[entries->count++] = (struct entry){key, pages};
    return true;
}

static bool collect_sharers(const struct pages *pages, struct entries *sharers)
{
    EACH_PAGE (pages, id) {
        uint64_t frame = page_record(pages, id)->link;
        if (is_shared(pages, id) && !push(sharers, frame << 32 | region_of(pages, id), 1))
            return false;
    }
    add_up(sharers);
    return true;
}

/*
 * The sharers of one frame, [first, end), each with each; a region with itself when it has two
 * pages there.
 */
static bool pair_up(const struct entries *sharers, size_t first, size_t end, struct entries *pairs)
{
    for (size_t a = first; a < end; a++)
        for (size_t b = a; b < end; b++) {
            uint64_t x = sharers->list[a].pages, y = sharers->list[b].pages;
            uint64_t pages = a == b ? x - 1 : x < y ? x : y;
            uint64_t key = sharers->list[a].key << 32 | (uint32_t)sharers->list[b].key;
            if (pages && !push(pairs, key, pages))
                return false;
        }
    return true;
}

static bool collect_pairs(const struct entries *sharers, struct entries *pairs)
{
    for (size_t first = 0, end; first < sharers->count; first = end) {
        uint64_t frame = sharers->list[first].key >> 32;
        for (end = first + 1; end < sharers->count && sharers->list[end].key >> 32 == frame; end++)
            ;
        if (!pair_up(sharers, first, end, pairs))
            return false;
    }
    add_up(pairs);
    return true;
}

int64_t ksmpy_shares(ksmpy_engine *engine, struct ksmpy_share *out, int64_t max)
{
    struct entries sharers = {0}, pairs = {0};
    int64_t count = -ENOMEM;
    if (engine->pages.forked)
        return -EPERM;
    engine_lock(engine);
    bool collected = collect_sharers(&engine->pages, &sharers);
    engine_unlock(engine);
    if (collected && collect_pairs(&sharers, &pairs)) {
        count = (int64_t)pairs.count;
        for (int64_t i = 0; i < count && i < max; i++) {
            uint64_t key = pairs.list[i].key;
            out[i] =
                (struct ksmpy_share){(uint32_t)(key >> 32), (uint32_t)key, pairs.list[i].pages};
        }
    }
    free(sharers.list);
    free(pairs.list);
    return count;
}
