/* Regions, as the callers of the engine see them. */
#include <errno.h>
#include <pthread.h>

#include "base/pages.h"
#include "engine/check.h"
#include "engine/locks.h"
#include "engine/revive.h"
#include "freeze/freezer.h"
#include "freeze/registration.h"
#include "merge/budget.h"
#include "merge/merger.h"
#include "merge/unmerge.h"
#include "os/clock.h"
#include "os/guard.h"
#include "os/map.h"
#include "os/proc_maps.h"
#include "pages/candidates.h"
#include "pages/lost.h"
#include "pages/pages.h"
#include "pages/regions.h"
#include "pages/sharing.h"
#include "scan/collect.h"
#include "scan/window.h"
#include "store/frames.h"

_Static_assert(PAGE_SIZE == KSMPY_PAGE_SIZE, "Python counts in other pages");

/* May the region be registered?  Asked before anything is taken for it. */
static int may_add(ksmpy_engine *engine, uintptr_t address, uint64_t n, int vma_flags)
{
    struct merger *merger = &engine->merger;
    if (region_find(merger->pages, address, n) != NO_REGION)
        return -EEXIST;
    if (vma_flags & KSMPY_VMA_UNKNOWN && !memory_is_plain(merger->pages, address, n))
        return -EADDRNOTAVAIL;
    uint64_t more = freezer_mappings(&merger->fz);
    if (budget_should_count(&merger->budget, n, more))
        engine_count_mappings(engine);
    return budget_admits(&merger->budget, n, more) ? 0 : -EDQUOT;
}

/* Pages whose holes are filled between two looks at the clock: 0.2 ms if all of them are holes. */
#define FILLED_AT_ONCE 512

static int fill_holes(ksmpy_engine *engine, const struct region *region, uint64_t *deadline)
{
    int error = 0;
    for (uint64_t at = 0, n; at < region->n && !error; at += n) {
        n = least(region->n - at, FILLED_AT_ONCE);
        error = freezer_fill_holes(&engine->merger.fz, region->address + bytes_of(at), n);
        engine_end_slice(engine, deadline);
    }
    return error;
}

/* After ENOMEM a part of the region may be registered with the kernel, which is taken back. */
static int attach(struct freezer *fz, const struct region *region)
{
    int error = freezer_attach(fz, region->address, region->n);
    if (error == -ENOMEM)
        freezer_detach(fz, region->address, region->n);
    return error;
}

static void move_candidates(ksmpy_engine *engine, uint64_t *deadline)
{
    while (candidates_move_some(&engine->pages))
        engine_end_slice(engine, deadline);
}

/* Done in slices, which is safe because the region that arrives is in no list yet. */
static int prepare(ksmpy_engine *engine, const struct region *region, uint64_t *deadline)
{
    uint64_t first = 0;
    move_candidates(engine, deadline);
    while (region_prepare_some(&engine->pages, &first))
        engine_end_slice(engine, deadline);
    int error = fill_holes(engine, region, deadline);
    return error ? error : attach(&engine->merger.fz, region);
}

static int add_region(ksmpy_engine *engine, uintptr_t address, uint64_t n, int vma_flags,
                      uint32_t *out)
{
    uint64_t deadline = slice_end(&engine->pages);
    move_candidates(engine, &deadline); /* the parent may have forked amidst such a move */
    int error = may_add(engine, address, n, vma_flags);
    if (error)
        return error;
    *out = region_arrive(&engine->pages, address, n, vma_flags);
    if (*out == NO_REGION)
        return -ENOMEM;
    error = prepare(engine, region_at(&engine->pages, *out), &deadline);
    if (error) {
        region_forget_arriving(&engine->pages);
        return error;
    }
    region_enlist(&engine->pages);
    budget_region_came(&engine->merger.budget);
    return 0;
}

int ksmpy_register(ksmpy_engine *engine, uintptr_t address, size_t length, int vma_flags,
                   uint32_t *region)
{
    uint64_t n = length >> PAGE_SHIFT;
    if (engine->pages.forked)
        return -EPERM;
    if (address % PAGE_SIZE || length % PAGE_SIZE || !n || address + length < address)
        return -EINVAL;
    pthread_mutex_lock(&engine->arrivals);
    engine_lock(engine);
    int error = add_region(engine, address, n, vma_flags, region);
    engine_unlock(engine);
    pthread_mutex_unlock(&engine->arrivals);
    check_step(engine);
    return error;
}

/* Pages detached in one slice: 0.3 ms if the kernel has to clear the tracking mark of each. */
#define DETACHED_AT_ONCE 4096

/* Detaches mapping by mapping, since the owner has put memory there that cannot be detached. */
static void detach_what_is_ours(struct merger *merger, uintptr_t at, uint64_t n)
{
    uintptr_t end = at + bytes_of(n);
    struct os_vma vma;
    os_maps_refresh(&merger->pages->maps);
    while (at < end && os_maps_find(&merger->pages->maps, at, &vma) > 0 && vma.start < end) {
        uintptr_t start = vma.start > at ? vma.start : at;
        at = vma.end < end ? vma.end : end;
        freezer_detach(&merger->fz, start, (at - start) >> PAGE_SHIFT);
    }
}

/* Detaches pages from *page on, as many as fit a slice; false: that was the last slice. */
static bool detach_some(struct merger *merger, const struct region *region, uint64_t *page)
{
    uint64_t rest = region->n - *page, n = least(rest, DETACHED_AT_ONCE);
    uintptr_t at = region->address + bytes_of(*page);
    int error = freezer_detach(&merger->fz, at, n);
    if (error == -ENOMEM) { /* to detach a part of a mapping takes one more; all of it takes none */
        n = rest;
        error = freezer_detach(&merger->fz, at, n);
    }
    if (error == -EINVAL)
        detach_what_is_ours(merger, at, n);
    *page += n;
    return *page < region->n;
}

static void remove_region(ksmpy_engine *engine, uint32_t id)
{
    const struct region *region = region_at(&engine->pages, id);
    /* In a child the shadow may not be mapped (MADV_DONTFORK), and its place may be another's. */
    if (!engine->pages.forked)
        os_unmap((void *)region->shadow, bytes_of(region->n + 1));
    leave_run_in(&engine->scanner, id);
    window_leave_region(&engine->scanner, id);
    region_remove(&engine->pages, id);
    budget_region_went(&engine->merger.budget);
}

/* Unmerges in slices: 0 or the first error.  What could not be given back stays merged. */
static int give_back(ksmpy_engine *engine, struct unmerging *work)
{
    while (unmerging_step(&engine->merger, work) || unmerging_again(&engine->merger, work)) {
        if (work->waits) {
            engine_unlock(engine);
            os_sleep_us(1000);
            engine_lock(engine);
        } else {
            engine_let_others_in(engine);
        }
    }
    return work->failure;
}

/*
 * Unmerges a region and detaches it, in slices.  Between these a pass does not merge again what has
 * come back, and another thread may release the region first (-ENOENT).
 */
static int release(ksmpy_engine *engine, uint32_t id, bool discard)
{
    struct unmerging work;
    uint64_t detached = 0;
    unmerging_begin(&engine->pages, &work, id, discard);
    int error = give_back(engine, &work);
    while (!error && detach_some(&engine->merger, region_at(&engine->pages, id), &detached)) {
        engine_let_others_in(engine);
        error = region_is(&engine->pages, id, work.serial) ? 0 : -ENOENT;
    }
    if (error)
        unmerging_end(&engine->pages, &work);
    else
        remove_region(engine, id);
    return error;
}

int ksmpy_release(ksmpy_engine *engine, uint32_t region, int discard)
{
    sigset_t mask;
    engine_lock(engine);
    guard_open(&mask);
    int error = region_is_known(&engine->pages, region) ? fork_revive(&engine->merger) : -ENOENT;
    if (!error)
        error = release(engine, region, discard);
    sharing_end_lease(&engine->pages);
    guard_close(&mask);
    engine_unlock(engine);
    check_step(engine);
    return error;
}

static int unmerge(ksmpy_engine *engine, uint32_t region)
{
    struct unmerging work;
    unmerging_begin(&engine->pages, &work, region, false);
    int error = give_back(engine, &work);
    unmerging_end(&engine->pages, &work);
    return error;
}

int ksmpy_unmerge_region(ksmpy_engine *engine, uint32_t region)
{
    if (engine->pages.forked)
        return -EPERM;
    sigset_t mask;
    engine_lock(engine);
    guard_open(&mask);
    int error = region_is_known(&engine->pages, region) ? unmerge(engine, region) : -ENOENT;
    guard_close(&mask);
    engine_unlock(engine);
    check_step(engine);
    return error;
}

/*
 * Regions that are registered meanwhile have ids at or behind the ones that are gone through, and
 * nothing of them is merged, since the pass lock is held.
 */
int ksmpy_unmerge(ksmpy_engine *engine)
{
    int failure = 0;
    sigset_t mask;
    if (engine->pages.forked)
        return -EPERM;
    pass_lock(engine);
    guard_open(&mask);
    engine_lock(engine);
    for (uint32_t id = 0; id < engine->pages.region_count; id++) {
        int error = region_is_known(&engine->pages, id) ? unmerge(engine, id) : 0;
        engine_let_others_in(engine);
        if (error != -ENOENT) /* ENOENT: another thread has released it meanwhile */
            failure = failure ? failure : error;
    }
    store_reap(&engine->pages.store);
    window_reset(&engine->scanner);
    engine_unlock(engine);
    guard_close(&mask);
    pass_unlock(engine);
    check_step(engine);
    return failure;
}

int64_t ksmpy_find_lost(ksmpy_engine *engine, uint32_t *regions, int64_t max)
{
    int64_t count = 0;
    if (engine->pages.forked)
        return -EPERM;
    engine_lock(engine);
    for (uintptr_t at = 0; find_lost_some(&engine->pages, &at);)
        engine_let_others_in(engine);
    EACH_REGION (&engine->pages, id)
        if (region_at(&engine->pages, id)->lost && count++ < max)
            regions[count - 1] = id;
    engine_unlock(engine);
    return count;
}

int64_t ksmpy_find_region(ksmpy_engine *engine, uintptr_t address, size_t length)
{
    engine_lock(engine);
    uint32_t id = region_find(&engine->pages, address, length >> PAGE_SHIFT);
    engine_unlock(engine);
    return id == NO_REGION ? -ENOENT : (int64_t)id;
}

int ksmpy_set_vma_flags(ksmpy_engine *engine, uint32_t region, uintptr_t address, int vma_flags)
{
    engine_lock(engine);
    bool there = region_is_known(&engine->pages, region) &&
                 region_at(&engine->pages, region)->address == address;
    int error = there ? 0 : -ENOENT;
    if (!error)
        region_at(&engine->pages, region)->vma_flags = vma_flags;
    engine_unlock(engine);
    return error;
}

int ksmpy_set_nodes(ksmpy_engine *engine, uint32_t region, const uint8_t *nodes, uint64_t count)
{
    int error = 0;
    engine_lock(engine);
    if (!region_is_known(&engine->pages, region) || region_at(&engine->pages, region)->n != count)
        error = -ENOENT;
    for (uint64_t i = 0; i < count && !error; i++)
        if (nodes[i] < engine->pages.nodes)
            page_move_to_node(&engine->pages, region_at(&engine->pages, region)->base + (uint32_t)i,
                              nodes[i]);
    engine_unlock(engine);
    check_step(engine);
    return error;
}
