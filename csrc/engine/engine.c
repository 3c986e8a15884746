/* The engine as its callers see it: construction and knobs. */
#include "engine/engine.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/pages.h"
#include "base/rbtree.h"
#include "freeze/freezer.h"
#include "ksmpy.h"
#include "os/arena.h"
#include "os/devices.h"
#include "os/files.h"
#include "os/map.h"
#include "os/maps.h"
#include "os/memory.h"
#include "os/probe.h"
#include "store/store.h"

#define MAX_REGIONS ((uint64_t)1 << 20)
#define MIN_PAGES                                                                                  \
    ((uint64_t)1 << 24) /* 64 GiB of registered memory at least, 8 times the machine's at most */

void engine_lock(ksmpy_engine *engine)
{
    atomic_fetch_add(&engine->waiting, 1);
    pthread_mutex_lock(&engine->lock);
    atomic_fetch_sub(&engine->waiting, 1);
}

void engine_unlock(ksmpy_engine *engine)
{
    pthread_mutex_unlock(&engine->lock);
}

void engine_let_others_in(ksmpy_engine *engine)
{
    engine_unlock(engine);
    while (atomic_load(&engine->waiting))
        sched_yield();
    engine_lock(engine);
}

int engine_lock_with_store(ksmpy_engine *engine)
{
    struct patience patience = {0};
    int error;
    do {
        engine_lock(engine);
        error = engine->forked               ? -EPERM
                : store_lock(&engine->store) ? 0
                                             : store_why_not(&engine->store);
        if (error)
            engine_unlock(engine);
    } while (try_again(&patience, &error));
    return error;
}

void engine_unlock_with_store(ksmpy_engine *engine)
{
    store_unlock(&engine->store);
    engine_unlock(engine);
}

void pass_lock(ksmpy_engine *engine)
{
    atomic_fetch_add(&engine->pass_wanted, 1);
    pthread_mutex_lock(&engine->pass);
    atomic_fetch_sub(&engine->pass_wanted, 1);
}

/* ---- construction ---- */

static int choose_freeze(const struct ksmpy_caps *caps, int wanted)
{
    bool blocks = caps->uffd && caps->uffd_wp_shmem;
    bool can[] = {
        [KSMPY_FREEZE_UFFD_MOVE] = blocks && caps->uffd_move,
        [KSMPY_FREEZE_UFFD_REMAP] = blocks && caps->mremap_dontunmap,
        [KSMPY_FREEZE_SIGNAL] = caps->mremap_dontunmap,
        [KSMPY_FREEZE_UFFD_WP] = blocks && caps->mremap_dontunmap,
    };
    if (wanted != KSMPY_FREEZE_AUTO)
        return wanted > 0 && wanted <= KSMPY_FREEZE_UFFD_WP && can[wanted] ? wanted : -EOPNOTSUPP;
    if (can[KSMPY_FREEZE_UFFD_WP] && !os_has_devices())
        return KSMPY_FREEZE_UFFD_WP;
    for (int mode = KSMPY_FREEZE_UFFD_MOVE; mode <= KSMPY_FREEZE_SIGNAL; mode++)
        if (can[mode])
            return mode;
    return -EOPNOTSUPP;
}

static int choose_tracking(const struct ksmpy_caps *caps, int wanted)
{
    bool can = caps->uffd_wp_async && caps->pagemap_scan;
    if (wanted == KSMPY_TRACKING_CHECKSUM || (wanted == KSMPY_TRACKING_AUTO && !can))
        return KSMPY_TRACKING_CHECKSUM;
    return can ? KSMPY_TRACKING_WP_ASYNC : -EOPNOTSUPP;
}

static void default_knobs(uint64_t *knobs)
{
    knobs[KSMPY_KNOB_SMART_SCAN] = 1;
    knobs[KSMPY_KNOB_CHAINS_PRUNE_MILLISECS] = 2000;
    knobs[KSMPY_KNOB_VMA_SHARE_PERCENT] = 50;
}

static uint64_t page_limit(void)
{
    uint64_t limit = os_memory_pages() * 8;
    limit = limit > MIN_PAGES ? limit : MIN_PAGES;
    return limit < RB_MAX_NODES ? limit : RB_MAX_NODES;
}

static int open_arrays(ksmpy_engine *engine)
{
    uint64_t limit = page_limit(), chunks = limit >> CHUNK_SHIFT;
    int error = arena_init(&engine->regions, sizeof(struct region), MAX_REGIONS);
    if (!error)
        error = arena_init(&engine->pages, sizeof(struct page), limit);
    if (!error)
        error = arena_init(&engine->chunk_records, sizeof(struct chunk), chunks);
    if (!error)
        error = ids_init(&engine->chunks, chunks, &engine->chunk_state);
    return error ? error : unstable_init(engine);
}

static void close_arrays(ksmpy_engine *engine)
{
    pins_forget(engine);
    arena_destroy(&engine->regions);
    arena_destroy(&engine->pages);
    arena_destroy(&engine->chunk_records);
    ids_destroy(&engine->chunks);
    unstable_destroy(engine);
}

static void close_engine(ksmpy_engine *engine)
{
    os_maps_close(&engine->maps);
    os_memory_close(&engine->memory);
    if (engine->store.head || engine->store.write_fd >= 0)
        store_destroy(&engine->store);
    close_arrays(engine);
    pthread_mutex_destroy(&engine->lock);
    pthread_mutex_destroy(&engine->pass);
    os_unmap(engine, sizeof *engine);
}

static int open_store(ksmpy_engine *engine, int fd)
{
    struct store *store = &engine->store;
    struct patience patience = {0};
    const int *node_ids = engine->injected_nodes ? NULL : engine->node_ids;
    int error;
    if (fd <= 0)
        return store_init(store, engine->nodes, node_ids);
    do {
        fork_hold();
        error = store_attach(store, fd, engine->nodes, node_ids);
        fork_let_go();
    } while (try_again(&patience, &error));
    if (!error)
        engine->events = store->head->events;
    return error;
}

static int start(ksmpy_engine *engine, int freeze_mode, int store_fd)
{
    int error = os_maps_open(&engine->maps);
    if (!error)
        error = os_memory_open(&engine->memory);
    if (!error)
        error = open_arrays(engine);
    if (!error)
        error = open_store(engine, store_fd);
    if (error)
        return error;
    follow_rules(engine);
    error = freezer_init(&engine->fz, freeze_mode, engine->tracked);
    if (error)
        return error;
    engine->sum_of_zeros = store_sum(&engine->store, engine->fz.zeros);
    error = fork_watch(engine);
    if (error)
        freezer_destroy(&engine->fz);
    return error;
}

/* Not what the machine lacks, where a limit of this process was in the way of the look. */
static int lack_of(const struct ksmpy_caps *caps)
{
    int fd = caps->memfd ? 0 : os_memfd("ksmpy-probe", PAGE_SIZE);
    if (fd < 0)
        return fd;
    if (fd)
        close(fd);
    return caps->memfd && caps->madv_populate ? 0 : -EOPNOTSUPP;
}

int ksmpy_engine_new(const struct ksmpy_options *options, ksmpy_engine **out)
{
    struct ksmpy_caps caps;
    os_probe(&caps);
    if (options->nodes < 1 || options->nodes > MAX_NODES)
        return -EINVAL;
    int lack = lack_of(&caps);
    if (lack)
        return lack;
    int freeze_mode = choose_freeze(&caps, options->freeze);
    int tracking = choose_tracking(&caps, options->tracking);
    if (freeze_mode < 0 || tracking < 0) {
        bool limited = caps.uffd_errno == EMFILE || caps.uffd_errno == ENFILE;
        return limited ? -caps.uffd_errno : -EOPNOTSUPP;
    }
    ksmpy_engine *engine =
        os_alloc(sizeof *engine); /* not from the heap, which may be registered */
    if (!engine)
        return -ENOMEM;
    pthread_mutex_init(&engine->lock, NULL);
    pthread_mutex_init(&engine->pass, NULL);
    engine->maps.fd = -1;
    store_forget_files(&engine->store);
    engine->minds_devices =
        options->freeze == KSMPY_FREEZE_AUTO && freeze_mode == KSMPY_FREEZE_UFFD_WP;
    engine->tracked = tracking == KSMPY_TRACKING_WP_ASYNC;
    engine->nodes = options->nodes;
    engine->injected_nodes = !options->node_ids;
    engine->first_region = engine->last_region = engine->cursor.region = NO_REGION;
    engine->free_region = NO_REGION;
    engine->by_address = RB_EMPTY;
    for (int i = 0; i < engine->nodes; i++)
        engine->node_ids[i] = options->node_ids ? options->node_ids[i] : -1;
    default_knobs(engine->knobs);
    int error = start(engine, freeze_mode, options->store_fd);
    if (error)
        close_engine(engine);
    else
        *out = engine;
    return error;
}

int ksmpy_engine_close(ksmpy_engine *engine)
{
    if (engine->first_region != NO_REGION && !engine->forked)
        return -EBUSY;
    fork_unwatch(engine);
    freezer_destroy(&engine->fz);
    close_engine(engine);
    return 0;
}

int ksmpy_engine_freeze(ksmpy_engine *engine)
{
    return engine->fz.mode;
}

int ksmpy_engine_tracking(ksmpy_engine *engine)
{
    return engine->tracked ? KSMPY_TRACKING_WP_ASYNC : KSMPY_TRACKING_CHECKSUM;
}

int ksmpy_engine_forked(ksmpy_engine *engine)
{
    return engine->forked;
}

void ksmpy_interrupt(ksmpy_engine *engine)
{
    atomic_store(&engine->interrupted, true);
}

/* ---- knobs ---- */

/* Frames of the old rule must be gone: EBUSY while one is shared, or may be mapped by a child. */
static int change_rule(ksmpy_engine *engine, int knob, uint64_t value)
{
    struct store *store = &engine->store;
    int error = 0;
    if (store->head->knobs[knob] == value)
        return 0;
    store_reap(store);
    if (store->head->live_frames || store->head->shared_frames) {
        error = -EBUSY;
    } else {
        store->head->knobs[knob] = value;
        store->head->rule_changes++;
    }
    return error;
}

static int set_knob(ksmpy_engine *engine, int knob, uint64_t value)
{
    int error = 0;
    if (knob == KSMPY_KNOB_MERGE_ACROSS_NODES || knob == KSMPY_KNOB_MAX_PAGE_SHARING)
        error = change_rule(engine, knob, value);
    else if (knob == KSMPY_KNOB_USE_ZERO_PAGES)
        engine->store.head->knobs[knob] = value;
    else
        engine->knobs[knob] = value;
    engine->count_again_ns = 0;
    follow_rules(engine);
    return error;
}

bool engine_has_files(const ksmpy_engine *engine)
{
    return store_has_files(&engine->store) && freezer_has_files(&engine->fz);
}

int knob_check(int knob, uint64_t value)
{
    switch (knob) {
    case KSMPY_KNOB_MERGE_ACROSS_NODES:
    case KSMPY_KNOB_USE_ZERO_PAGES:
    case KSMPY_KNOB_SMART_SCAN:
        return value <= 1 ? 0 : -EINVAL;
    case KSMPY_KNOB_MAX_PAGE_SHARING:
        return value >= 2 && value <= INT32_MAX ? 0 : -EINVAL;
    case KSMPY_KNOB_VMA_SHARE_PERCENT:
        return value <= 100 ? 0 : -EINVAL;
    case KSMPY_KNOB_CHAINS_PRUNE_MILLISECS:
        return value <= UINT32_MAX ? 0 : -EINVAL;
    default:
        return -EINVAL;
    }
}

int ksmpy_knob_set(ksmpy_engine *engine, int knob, uint64_t value)
{
    int error = knob_check(knob, value);
    if (error)
        return error;
    pass_lock(engine);
    error = engine_lock_with_store(engine);
    if (!error) {
        error = set_knob(engine, knob, value);
        engine_unlock_with_store(engine);
    }
    pthread_mutex_unlock(&engine->pass);
    check_step(engine);
    return error;
}

int ksmpy_knob_get(ksmpy_engine *engine, int knob, uint64_t *value)
{
    if (knob < 0 || knob >= KSMPY_KNOB_COUNT)
        return -EINVAL;
    engine_lock(engine);
    bool rule = knob < STORE_KNOBS && !engine->forked;
    *value = rule ? engine->store.head->knobs[knob] : engine->knobs[knob];
    engine_unlock(engine);
    return 0;
}
