/* The engine as its callers see it: construction, regions, knobs. */
#include "engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

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

/* A pass under way ends at its next slice. */
static void pass_lock(ksmpy_engine *engine)
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
    };
    if (wanted != KSMPY_FREEZE_AUTO)
        return wanted > 0 && wanted <= KSMPY_FREEZE_SIGNAL && can[wanted] ? wanted : -EOPNOTSUPP;
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
    knobs[KSMPY_KNOB_MERGE_ACROSS_NODES] = 1;
    knobs[KSMPY_KNOB_MAX_PAGE_SHARING] = 256;
    knobs[KSMPY_KNOB_USE_ZERO_PAGES] = 0;
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
        error = arena_init(&engine->chunk_owner, sizeof(uint32_t), chunks);
    if (!error)
        error = ids_init(&engine->chunks, chunks);
    if (!error)
        error = stable_init(engine);
    return error ? error : unstable_init(engine);
}

static void close_arrays(ksmpy_engine *engine)
{
    arena_destroy(&engine->regions);
    arena_destroy(&engine->pages);
    arena_destroy(&engine->chunk_owner);
    ids_destroy(&engine->chunks);
    stable_destroy(engine);
    unstable_destroy(engine);
}

static void close_engine(ksmpy_engine *engine)
{
    os_maps_close(&engine->maps);
    if (engine->store.nodes)
        store_destroy(&engine->store);
    close_arrays(engine);
    pthread_mutex_destroy(&engine->lock);
    pthread_mutex_destroy(&engine->pass);
    os_unmap(engine, sizeof *engine);
}

static uint64_t checksum_of_zeros(const struct freezer *fz)
{
    return cut_sum(ksmpy_checksum(fz->zeros, PAGE_SIZE));
}

static int start(ksmpy_engine *engine, int freeze_mode)
{
    int error = os_maps_open(&engine->maps);
    if (!error)
        error = open_arrays(engine);
    if (!error)
        error = store_init(&engine->store, engine->nodes,
                           engine->injected_nodes ? NULL : engine->node_ids);
    if (error)
        return error;
    error = freezer_init(&engine->fz, freeze_mode, engine->tracked);
    if (error)
        return error;
    engine->sum_of_zeros = checksum_of_zeros(&engine->fz);
    error = fork_watch(engine);
    if (error)
        freezer_destroy(&engine->fz);
    return error;
}

int ksmpy_engine_new(const struct ksmpy_options *options, ksmpy_engine **out)
{
    struct ksmpy_caps caps;
    os_probe(&caps);
    if (options->nodes < 1 || options->nodes > MAX_NODES)
        return -EINVAL;
    if (!caps.memfd || !caps.madv_populate)
        return -EOPNOTSUPP;
    int freeze_mode = choose_freeze(&caps, options->freeze);
    int tracking = choose_tracking(&caps, options->tracking);
    if (freeze_mode < 0 || tracking < 0)
        return -EOPNOTSUPP;
    ksmpy_engine *engine =
        os_alloc(sizeof *engine); /* not from the heap, which may be registered */
    if (!engine)
        return -ENOMEM;
    pthread_mutex_init(&engine->lock, NULL);
    pthread_mutex_init(&engine->pass, NULL);
    engine->maps.fd = -1;
    engine->tracked = tracking == KSMPY_TRACKING_WP_ASYNC;
    engine->nodes = options->nodes;
    engine->injected_nodes = !options->node_ids;
    engine->first_region = engine->last_region = engine->cursor.region = NO_REGION;
    for (int i = 0; i < engine->nodes; i++)
        engine->node_ids[i] = options->node_ids ? options->node_ids[i] : -1;
    default_knobs(engine->knobs);
    int error = start(engine, freeze_mode);
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

/* ---- regions ---- */

static bool overlaps(const ksmpy_engine *engine, uintptr_t address, uint64_t n)
{
    uintptr_t end = address + bytes_of(n);
    for (uint32_t id = engine->first_region; id != NO_REGION; id = region_at(engine, id)->next) {
        const struct region *region = region_at(engine, id);
        if (address < region->address + bytes_of(region->n) && region->address < end)
            return true;
    }
    return false;
}

static uint32_t free_region(ksmpy_engine *engine)
{
    for (uint32_t id = 0; id < engine->region_count; id++)
        if (!region_at(engine, id)->used)
            return id;
    if (arena_grow(&engine->regions, (uint64_t)engine->region_count + 1) < 0)
        return NO_REGION;
    return engine->region_count++;
}

static uint64_t chunks_of(uint64_t pages)
{
    return (pages + CHUNK - 1) >> CHUNK_SHIFT;
}

/* Page ids for the region, with their records; NO_PAGE when there is no memory for them. */
static uint32_t take_pages(ksmpy_engine *engine, uint32_t region, uint64_t n)
{
    uint64_t chunks = chunks_of(n), got = chunks;
    uint32_t first = ids_take(&engine->chunks, &got);
    if (first == NO_INDEX)
        return NO_PAGE;
    bool room = got == chunks && arena_grow(&engine->chunk_owner, first + chunks) == 0 &&
                arena_grow(&engine->pages, (first + chunks) << CHUNK_SHIFT) == 0 &&
                unstable_resize(engine, engine->registered + n) == 0;
    if (!room) {
        ids_give(&engine->chunks, first, got);
        return NO_PAGE;
    }
    for (uint64_t i = 0; i < chunks; i++)
        *(uint32_t *)arena_at(&engine->chunk_owner, first + i) = region;
    uint32_t base = first << CHUNK_SHIFT;
    for (uint64_t i = 0; i < n; i++)
        *page_record(engine, base + (uint32_t)i) = (struct page){.link = NO_INDEX};
    return base;
}

static void give_pages(ksmpy_engine *engine, const struct region *region)
{
    ids_give(&engine->chunks, region->base >> CHUNK_SHIFT, chunks_of(region->n));
}

static void append(ksmpy_engine *engine, uint32_t id)
{
    struct region *region = region_at(engine, id);
    region->next = NO_REGION;
    region->previous = engine->last_region;
    if (engine->last_region == NO_REGION)
        engine->first_region = id;
    else
        region_at(engine, engine->last_region)->next = id;
    engine->last_region = id;
    engine->registered += region->n;
}

static void take_out(ksmpy_engine *engine, uint32_t id)
{
    const struct region *region = region_at(engine, id);
    cursor_leave(engine, id);
    if (region->previous == NO_REGION)
        engine->first_region = region->next;
    else
        region_at(engine, region->previous)->next = region->next;
    if (region->next == NO_REGION)
        engine->last_region = region->previous;
    else
        region_at(engine, region->next)->previous = region->previous;
    engine->registered -= region->n;
}

static int add_region(ksmpy_engine *engine, uintptr_t address, uint64_t n, int vma_flags,
                      uint32_t *out)
{
    if (overlaps(engine, address, n))
        return -EEXIST;
    uint32_t id = free_region(engine);
    if (id == NO_REGION)
        return -ENOMEM;
    uint32_t base = take_pages(engine, id, n);
    if (base == NO_PAGE)
        return -ENOMEM;
    struct region *region = region_at(engine, id);
    *region = (struct region){
        .used = true, .vma_flags = vma_flags, .address = address, .n = n, .base = base};
    int error = freezer_attach(&engine->fz, address, n);
    if (error) {
        give_pages(engine, region);
        region->used = false;
        return error;
    }
    append(engine, id);
    *out = id;
    return 0;
}

int ksmpy_register(ksmpy_engine *engine, uintptr_t address, size_t length, int vma_flags,
                   uint32_t *region)
{
    uint64_t n = length >> PAGE_SHIFT;
    if (engine->forked)
        return -EPERM;
    if (address % PAGE_SIZE || length % PAGE_SIZE || !n || address + length < address)
        return -EINVAL;
    engine_lock(engine);
    int error = add_region(engine, address, n, vma_flags, region);
    engine_unlock(engine);
    return error;
}

static bool known(const ksmpy_engine *engine, uint32_t region)
{
    return region < engine->region_count && region_at(engine, region)->used;
}

static void remove_region(ksmpy_engine *engine, uint32_t id)
{
    struct region *region = region_at(engine, id);
    for (uint64_t i = 0; i < region->n; i++) {
        page_withdraw(engine, region->base + (uint32_t)i);
        page_become(engine, region->base + (uint32_t)i, PAGE_NEW, NO_INDEX);
    }
    freezer_detach(&engine->fz, region->address, region->n);
    take_out(engine, id);
    give_pages(engine, region);
    region->used = false;
}

int ksmpy_release(ksmpy_engine *engine, uint32_t region, int discard)
{
    int error = -ENOENT;
    engine_lock(engine);
    if (known(engine, region)) {
        error = fork_revive(engine);
        if (discard && !error)
            discard_region(engine, region);
        else if (!error)
            error = unmerge_region(engine, region);
        if (!error)
            remove_region(engine, region);
    }
    engine_unlock(engine);
    return error;
}

int ksmpy_unmerge_region(ksmpy_engine *engine, uint32_t region)
{
    if (engine->forked)
        return -EPERM;
    engine_lock(engine);
    int error = known(engine, region) ? unmerge_region(engine, region) : -ENOENT;
    engine_unlock(engine);
    return error;
}

/*
 * One region at a time under the lock; new ones come last, and have nothing merged while no pass
 * runs.
 */
int ksmpy_unmerge(ksmpy_engine *engine)
{
    int failure = 0;
    if (engine->forked)
        return -EPERM;
    pass_lock(engine);
    for (uint32_t id = 0; id < engine->region_count; id++) {
        engine_lock(engine);
        int error = known(engine, id) ? unmerge_region(engine, id) : 0;
        engine_unlock(engine);
        failure = failure ? failure : error;
    }
    engine_lock(engine);
    frames_reap(engine);
    cursor_reset(engine);
    engine_unlock(engine);
    pthread_mutex_unlock(&engine->pass);
    return failure;
}

int64_t ksmpy_find_lost(ksmpy_engine *engine, uint32_t *regions, int64_t max)
{
    int64_t count = 0;
    if (engine->forked)
        return -EPERM;
    engine_lock(engine);
    budget_find_lost(engine);
    for (uint32_t id = engine->first_region; id != NO_REGION; id = region_at(engine, id)->next)
        if (region_at(engine, id)->lost && count++ < max)
            regions[count - 1] = id;
    engine_unlock(engine);
    return count;
}

int ksmpy_set_nodes(ksmpy_engine *engine, uint32_t region, const uint8_t *nodes, uint64_t count)
{
    int error = 0;
    engine_lock(engine);
    if (!known(engine, region) || region_at(engine, region)->n != count)
        error = -ENOENT;
    for (uint64_t i = 0; i < count && !error; i++)
        if (nodes[i] < engine->nodes)
            page_move_to_node(engine, region_at(engine, region)->base + (uint32_t)i, nodes[i]);
    engine_unlock(engine);
    return error;
}

/* ---- knobs ---- */

/* Candidates are where the old rule put them. */
static void forget_candidates(ksmpy_engine *engine)
{
    for (uint32_t id = engine->first_region; id != NO_REGION; id = region_at(engine, id)->next)
        for (uint64_t i = 0; i < region_at(engine, id)->n; i++)
            page_withdraw(engine, region_at(engine, id)->base + (uint32_t)i);
}

/* Frames of the old rule must be gone: EBUSY while one is shared, or may be mapped by a child. */
static int change_rule(ksmpy_engine *engine, int knob, uint64_t value)
{
    if (engine->knobs[knob] == value)
        return 0;
    bool gone = frames_reap(engine);
    if (!gone || engine->shared_frames)
        return -EBUSY;
    forget_candidates(engine);
    engine->knobs[knob] = value;
    return 0;
}

static int check_value(int knob, uint64_t value)
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
    int error = check_value(knob, value);
    if (error)
        return error;
    pass_lock(engine);
    engine_lock(engine);
    if (knob == KSMPY_KNOB_MERGE_ACROSS_NODES || knob == KSMPY_KNOB_MAX_PAGE_SHARING)
        error = change_rule(engine, knob, value);
    else
        engine->knobs[knob] = value;
    if (knob == KSMPY_KNOB_USE_ZERO_PAGES && value)
        for (int tree = 0; tree < engine->nodes; tree++)
            unstable_wake(engine, tree, engine->sum_of_zeros);
    engine_unlock(engine);
    pthread_mutex_unlock(&engine->pass);
    return error;
}

int ksmpy_knob_get(ksmpy_engine *engine, int knob, uint64_t *value)
{
    if (knob < 0 || knob >= KSMPY_KNOB_COUNT)
        return -EINVAL;
    engine_lock(engine);
    *value = engine->knobs[knob];
    engine_unlock(engine);
    return 0;
}
