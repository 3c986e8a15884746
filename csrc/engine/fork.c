/*
 * fork().  Before it, every engine is brought to rest: nothing frozen, no half
 * change, and a lease that tells how long the child may map our frames.  In the
 * child the memory stays as it is (overlays are copy-on-write for it as well),
 * but the engine is only a shell: its threads are gone, its descriptors act on
 * the parent.  It can still give memory back, with a freezer of its own.  On a
 * shared store it can become a whole engine again (ksmpy_revive).
 */
#include <errno.h>

#include "base/pages.h"
#include "engine/engine.h"
#include "freeze/freezer.h"
#include "ksmpy.h"
#include "os/maps.h"
#include "store/store.h"

static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static ksmpy_engine *all;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int atfork_error;

static void prepare(void)
{
    pthread_mutex_lock(&all_lock);
    for (ksmpy_engine *engine = all; engine; engine = engine->next) {
        engine_lock(engine);
        pthread_mutex_lock(&engine->fz.lock);
        if (!engine->forked)
            store_fork_prepare(&engine->store);
    }
}

static void in_parent(void)
{
    for (ksmpy_engine *engine = all; engine; engine = engine->next) {
        store_fork_parent(&engine->store);
        pthread_mutex_unlock(&engine->fz.lock);
        engine_unlock(engine);
    }
    pthread_mutex_unlock(&all_lock);
}

/* Overlays that its parent had lost sight of it may have inherited. */
void fork_end_lease(ksmpy_engine *engine)
{
    if (engine->forked && !engine->astray && !engine->pin_count && !engine->pages_in[PAGE_SHARED])
        store_end_lease(&engine->store);
}

/* Threads that were giving pages back, between two slices, are not here. */
static void forget_callers(ksmpy_engine *engine)
{
    for (uint32_t id = engine->first_region; id != NO_REGION; id = region_at(engine, id)->next)
        region_at(engine, id)->leaving = 0;
}

static void let_go(ksmpy_engine *engine)
{
    freezer_abandon(&engine->fz);
    os_maps_close(&engine->maps);
    if (!engine->forked) /* a child's child goes on with its parent's lease */
        store_abandon(&engine->store);
    engine->forked = true;
    forget_callers(engine);
    fork_end_lease(engine);
    engine->run = (struct run){.kind = RUN_NONE};
    atomic_store(&engine->waiting, 0);
    atomic_store(&engine->pass_wanted, 0);
    pthread_mutex_init(&engine->lock, NULL);
    pthread_mutex_init(&engine->pass, NULL);
}

static void in_child(void)
{
    for (ksmpy_engine *engine = all; engine; engine = engine->next)
        let_go(engine);
    pthread_mutex_init(&all_lock, NULL);
}

static void set_up(void)
{
    atfork_error = -pthread_atfork(prepare, in_parent, in_child);
}

void fork_hold(void)
{
    pthread_once(&once, set_up);
    pthread_mutex_lock(&all_lock);
}

void fork_let_go(void)
{
    pthread_mutex_unlock(&all_lock);
}

int fork_watch(ksmpy_engine *engine)
{
    pthread_once(&once, set_up);
    if (atfork_error)
        return atfork_error;
    pthread_mutex_lock(&all_lock);
    engine->next = all;
    all = engine;
    pthread_mutex_unlock(&all_lock);
    return 0;
}

void fork_unwatch(ksmpy_engine *engine)
{
    pthread_mutex_lock(&all_lock);
    ksmpy_engine **link = &all;
    while (*link && *link != engine)
        link = &(*link)->next;
    if (*link)
        *link = engine->next;
    pthread_mutex_unlock(&all_lock);
}

/* The one it has is its parent's, or not there. */
static int open_freezer(ksmpy_engine *engine, bool tracked)
{
    int error = os_maps_open(&engine->maps);
    if (error)
        return error;
    error = freezer_init(&engine->fz, engine->fz.mode, tracked);
    if (error)
        os_maps_close(&engine->maps);
    return error;
}

int fork_revive(ksmpy_engine *engine)
{
    bool has_one = !engine->forked || engine->fz.pagemap_fd >= 0;
    return has_one ? 0 : open_freezer(engine, false);
}

/* ---- becoming an engine of the child's own ---- */

/* Overlays are registered only to track them. What is not here the next pass finds lost. */
static void attach_region(ksmpy_engine *engine, const struct region *region)
{
    uintptr_t at = region->address, end = at + bytes_of(region->n);
    struct os_vma vma;
    while (at < end && os_maps_find(&engine->maps, at, &vma) > 0 && vma.start < end) {
        uintptr_t start = vma.start > at ? vma.start : at;
        uint64_t n = ((vma.end < end ? vma.end : end) - start) >> PAGE_SHIFT;
        if (is_overlay(engine, &vma))
            freezer_track_overlay(&engine->fz, start, n);
        else
            freezer_attach(&engine->fz, start, n);
        at = vma.end;
    }
}

static void attach_regions(ksmpy_engine *engine)
{
    for (uint32_t id = engine->first_region; id != NO_REGION; id = region_at(engine, id)->next) {
        struct region *region = region_at(engine, id);
        os_maps_refresh(&engine->maps);
        region->shadow = 0; /* where it was not inherited, its place may be another's */
        mark_blind(engine, region->base, region->n);
        attach_region(engine, region);
    }
}

/* All that the records say: nobody can tell which of it is really mapped here. */
static void rejoin_frames(ksmpy_engine *engine)
{
    for (uint32_t id = engine->first_region; id != NO_REGION; id = region_at(engine, id)->next)
        for (uint64_t i = 0; i < region_at(engine, id)->n; i++) {
            const struct page *page =
                page_record(engine, region_at(engine, id)->base + (uint32_t)i);
            if (page_state(page) == PAGE_SHARED)
                store_rejoin(&engine->store, page->link);
        }
}

/* The child's lease keeps its frames until it has joined them. */
static int revive(ksmpy_engine *engine)
{
    struct store *store = &engine->store;
    if (!store->shared)
        return -EPERM;
    int error = store_attach_again(store);
    if (error)
        return error;
    if (engine->fz.pagemap_fd >= 0) { /* fork_revive() made one, which tracks nothing */
        freezer_destroy(&engine->fz);
        os_maps_close(&engine->maps);
    }
    error = open_freezer(engine, engine->tracked);
    if (!error && !store_lock(store))
        error = store_why_not(store);
    if (error) {
        store_return_to_parent(store);
        return error;
    }
    rejoin_frames(engine);
    pins_inherit(engine);
    store_unlock(store);
    store_part_from_parent(store);
    engine->forked = false;
    engine->rule_changes = UINT64_MAX; /* if it was laid out anew, its checksums are others */
    engine->sum_of_zeros = store_sum(store, engine->fz.zeros);
    engine->events = UINT64_MAX; /* so that its pages are made known as its own */
    attach_regions(engine);
    cursor_reset(engine);
    return 0;
}

int ksmpy_revive(ksmpy_engine *engine)
{
    struct patience patience = {0};
    int error = 0;
    do {
        fork_hold();
        engine_lock(engine);
        error = engine->forked ? revive(engine) : 0;
        engine_unlock(engine);
        fork_let_go();
    } while (try_again(&patience, &error));
    check_step(engine);
    return error;
}
