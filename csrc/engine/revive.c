/*
 * In a forked child: an inherited engine can give memory back, with a freezer of its own, and on a
 * shared store it can become a whole engine again.
 */
#include "engine/revive.h"

#include <errno.h>

#include "base/pages.h"
#include "engine/check.h"
#include "engine/locks.h"
#include "freeze/freezer.h"
#include "freeze/registration.h"
#include "freeze/removal_thread.h"
#include "merge/merger.h"
#include "os/forks.h"
#include "os/proc_maps.h"
#include "pages/overlay.h"
#include "pages/pages.h"
#include "pages/pins.h"
#include "pages/records.h"
#include "scan/scanner.h"
#include "scan/window.h"
#include "store/attach.h"
#include "store/lock.h"
#include "store/patience.h"
#include "store/sharers.h"
#include "store/store.h"

/* Opens the freezer anew: the inherited one was abandoned at the fork. */
static int open_freezer(struct merger *merger, bool tracked)
{
    int error = os_maps_open(&merger->pages->maps);
    if (error)
        return error;
    error = freezer_init(&merger->fz, merger->fz.mode, tracked);
    if (error)
        os_maps_close(&merger->pages->maps);
    else
        freezer_know_store(&merger->fz, merger->pages->store.inode, merger->pages->store.dev);
    return error;
}

int fork_revive(struct merger *merger)
{
    bool has_one = !merger->pages->forked || merger->fz.pagemap_fd >= 0;
    return has_one ? 0 : open_freezer(merger, false);
}

static void attach(struct freezer *fz, uintptr_t start, uint64_t n)
{
    if (freezer_fill_holes(fz, start, n) == 0)
        freezer_attach(fz, start, n);
}

/*
 * Registers a region's mappings, one by one.  Overlays are registered only to track writes.  Memory
 * of the region that is not mapped in the child is found to be lost by the next pass.
 */
static void attach_region(struct merger *merger, const struct region *region)
{
    uintptr_t at = region->address, end = at + bytes_of(region->n);
    struct os_vma vma;
    while (at < end && os_maps_find(&merger->pages->maps, at, &vma) > 0 && vma.start < end) {
        uintptr_t start = vma.start > at ? vma.start : at;
        uint64_t n = ((vma.end < end ? vma.end : end) - start) >> PAGE_SHIFT;
        if (is_overlay(merger->pages, &vma))
            freezer_track_overlay(&merger->fz, start, n);
        else
            attach(&merger->fz, start, n);
        at = vma.end;
    }
}

static void attach_regions(struct merger *merger)
{
    EACH_REGION (merger->pages, id) {
        struct region *region = region_at(merger->pages, id);
        os_maps_refresh(&merger->pages->maps);
        region->shadow = 0; /* it may not be mapped in the child, and its place may be another's */
        mark_untracked(merger->pages, region->base, region->n);
        attach_region(merger, region);
    }
}

/*
 * Joins every frame that the records name.  Not all of them need be mapped in this process, which
 * nobody can tell; a sharer too many only keeps a frame longer.
 */
static void rejoin_frames(struct pages *pages)
{
    EACH_PAGE (pages, id)
        if (is_shared(pages, id))
            store_rejoin(&pages->store, page_record(pages, id)->link);
}

/*
 * Makes the inherited engine a member of its store.  The lease that its parent took for it keeps
 * the frames from being freed until it has joined them.
 */
static int revive(struct scanner *scanner)
{
    struct store *store = &scanner->pages->store;
    if (!store->shared)
        return -EPERM;
    int error = store_attach_again(store);
    if (error)
        return error;
    if (scanner->merger->fz.pagemap_fd >= 0) { /* that of fork_revive(), which tracks no writes */
        freezer_destroy(&scanner->merger->fz);
        os_maps_close(&scanner->pages->maps);
    }
    error = open_freezer(scanner->merger, scanner->pages->tracked);
    if (!error && !store_lock(store))
        error = store_why_not(store);
    if (error) {
        store_return_to_parent(store);
        return error;
    }
    rejoin_frames(scanner->pages);
    pins_inherit(scanner->pages);
    store_unlock(store);
    if (!scanner->pages->pins.unlisted) /* else that lease alone keeps frames that are in no list */
        store_part_from_parent(store);
    scanner->pages->forked = false;
    /* The store may have been laid out anew, with another key: checksums are then made again. */
    scanner->pages->rules_followed = UINT64_MAX;
    scanner->pages->sum_of_zeros = store_sum(store, scanner->merger->fz.zeros);
    scanner->pages->events_read = UINT64_MAX; /* so that all pages are announced as its own */
    attach_regions(scanner->merger);
    window_reset(scanner);
    return 0;
}

int ksmpy_revive(ksmpy_engine *engine)
{
    struct patience patience = {0};
    int error = 0;
    do {
        fork_hold();
        engine_lock(engine);
        error = engine->pages.forked ? revive(&engine->scanner) : 0;
        engine_unlock(engine);
        fork_let_go();
    } while (try_again(&patience, &error));
    check_step(engine);
    return error;
}
