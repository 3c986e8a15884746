/* Regions: registering, releasing and unmerging them. */
#include <errno.h>

#include "base/pages.h"
#include "base/rbtree.h"
#include "engine/engine.h"
#include "freeze/freezer.h"
#include "ksmpy.h"
#include "os/arena.h"
#include "os/clock.h"
#include "os/guard.h"
#include "os/map.h"
#include "os/maps.h"
#include "store/store.h"

static struct rb_arena region_arena(const ksmpy_engine *engine)
{
    return (struct rb_arena){.base = engine->regions.base, .stride = sizeof(struct region)};
}

/* The lowest region with a page in the n pages at the address, or NO_REGION. */
static uint32_t find_overlap(const ksmpy_engine *engine, uintptr_t address, uint64_t n)
{
    uint32_t found = NO_REGION, at = engine->by_address.root;
    while (at != RB_NONE) {
        const struct region *region = region_at(engine, at);
        bool ends_above = address < region->address + bytes_of(region->n);
        if (ends_above)
            found = at;
        at = rb_child(&region->by_address, ends_above ? RB_LEFT : RB_RIGHT);
    }
    bool overlaps = found != NO_REGION && region_at(engine, found)->address < address + bytes_of(n);
    return overlaps ? found : NO_REGION;
}

uint32_t region_from(const ksmpy_engine *engine, uintptr_t address)
{
    return find_overlap(engine, address, (UINTPTR_MAX - address) >> PAGE_SHIFT);
}

/* None that is in the tree overlaps it. */
static void link_by_address(ksmpy_engine *engine, uint32_t id)
{
    struct rb_arena arena = region_arena(engine);
    uint32_t parent = RB_NONE, at = engine->by_address.root;
    enum rb_side side = RB_LEFT;
    while (at != RB_NONE) {
        parent = at;
        side = region_at(engine, id)->address < region_at(engine, at)->address ? RB_LEFT : RB_RIGHT;
        at = rb_child(&region_at(engine, at)->by_address, side);
    }
    rb_link(&arena, &engine->by_address, id, parent, side);
}

static uint32_t take_record(ksmpy_engine *engine)
{
    uint32_t id = engine->free_region;
    if (id != NO_REGION) {
        engine->free_region = region_at(engine, id)->next;
        return id;
    }
    if (arena_grow(&engine->regions, (uint64_t)engine->region_count + 1) < 0)
        return NO_REGION;
    return engine->region_count++;
}

static void give_record(ksmpy_engine *engine, uint32_t id)
{
    *region_at(engine, id) = (struct region){.next = engine->free_region};
    engine->free_region = id;
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
    bool room = got == chunks && arena_grow(&engine->chunk_records, first + chunks) == 0 &&
                arena_grow(&engine->pages, (first + chunks) << CHUNK_SHIFT) == 0 &&
                unstable_resize(engine, engine->registered + n) == 0;
    if (!room) {
        ids_give(&engine->chunks, first, got);
        return NO_PAGE;
    }
    for (uint64_t i = 0; i < chunks; i++)
        *(struct chunk *)arena_at(&engine->chunk_records, first + i) =
            (struct chunk){.region = region};
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
    link_by_address(engine, id);
    engine->registered += region->n;
    engine->pages_in[PAGE_NEW] += region->n;
    engine->calm_since = engine->full_scans;
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
    struct rb_arena arena = region_arena(engine);
    rb_erase(&arena, &engine->by_address, id);
    engine->registered -= region->n;
    engine->pages_in[PAGE_NEW] -= region->n;
}

/* Is it all private anonymous memory that may be written? */
static bool is_plain(ksmpy_engine *engine, uintptr_t address, uint64_t n)
{
    uintptr_t at = address, end = address + bytes_of(n);
    struct os_vma vma;
    os_maps_refresh(&engine->maps);
    while (at < end) {
        int found = os_maps_find(&engine->maps, at, &vma);
        if (found <= 0 || vma.start > at || !vma.private_rw || vma.inode)
            return false;
        at = vma.end;
    }
    return true;
}

/* What the kernel is asked before anything is taken for the region. */
static int may_add(ksmpy_engine *engine, uintptr_t address, uint64_t n, int vma_flags)
{
    if (find_overlap(engine, address, n) != NO_REGION)
        return -EEXIST;
    if (vma_flags & KSMPY_VMA_UNKNOWN && !is_plain(engine, address, n))
        return -EADDRNOTAVAIL;
    return budget_admits(engine, n, freezer_mappings(&engine->fz)) ? 0 : -EDQUOT;
}

static int fill_record(ksmpy_engine *engine, uint32_t id, uintptr_t address, uint64_t n,
                       int vma_flags)
{
    uint32_t base = take_pages(engine, id, n);
    if (base == NO_PAGE)
        return -ENOMEM;
    struct region *region = region_at(engine, id);
    *region = (struct region){.used = true,
                              .growing = vma_flags & KSMPY_VMA_GROWING,
                              .vma_flags = vma_flags & ~KSMPY_VMA_GROWING,
                              .address = address,
                              .serial = ++engine->registrations,
                              .n = n,
                              .base = base};
    region->pages_in[PAGE_NEW] = n;
    int error = freezer_attach(&engine->fz, address, n);
    if (error)
        give_pages(engine, region);
    return error;
}

static int add_region(ksmpy_engine *engine, uintptr_t address, uint64_t n, int vma_flags,
                      uint32_t *out)
{
    int error = may_add(engine, address, n, vma_flags);
    if (error)
        return error;
    uint32_t id = take_record(engine);
    if (id == NO_REGION)
        return -ENOMEM;
    error = fill_record(engine, id, address, n, vma_flags);
    if (error) {
        give_record(engine, id);
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
    check_step(engine);
    return error;
}

static bool known(const ksmpy_engine *engine, uint32_t region)
{
    return region < engine->region_count && region_at(engine, region)->used;
}

#define DETACHED_AT_ONCE 4096 /* pages; with the marks of each to be cleared 0.3 ms */

/* Pages from *page on are watched no more; false: that was the last slice. */
static bool detach_some(ksmpy_engine *engine, const struct region *region, uint64_t *page)
{
    uint64_t rest = region->n - *page, n = least(rest, DETACHED_AT_ONCE);
    uintptr_t at = region->address + bytes_of(*page);
    if (freezer_detach(&engine->fz, at, n) == -ENOMEM) { /* a part of a mapping takes one more */
        n = rest;
        freezer_detach(&engine->fz, at, n);
    }
    *page += n;
    return *page < region->n;
}

static void remove_region(ksmpy_engine *engine, uint32_t id)
{
    const struct region *region = region_at(engine, id);
    if (!engine->forked) /* a child may not have it, if its owner keeps the memory from children */
        os_unmap((void *)region->shadow, bytes_of(region->n + 1));
    take_out(engine, id);
    give_pages(engine, region);
    give_record(engine, id);
    engine->gone_since_count++;
}

/* 0 or the first error; what could not be given back stays as it is. */
static int give_back(ksmpy_engine *engine, struct unmerging *work)
{
    while (unmerging_step(engine, work)) {
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

/* Whatever others do meanwhile, they do not merge what has come back. */
static int release(ksmpy_engine *engine, uint32_t id, bool discard)
{
    struct unmerging work;
    uint64_t detached = 0;
    unmerging_begin(engine, &work, id, discard);
    int error = give_back(engine, &work);
    while (!error && detach_some(engine, region_at(engine, id), &detached)) {
        engine_let_others_in(engine);
        error = region_is(engine, id, work.serial) ? 0 : -ENOENT;
    }
    if (error)
        unmerging_end(engine, &work);
    else
        remove_region(engine, id);
    return error;
}

int ksmpy_release(ksmpy_engine *engine, uint32_t region, int discard)
{
    sigset_t mask;
    engine_lock(engine);
    guard_open(&mask);
    int error = known(engine, region) ? fork_revive(engine) : -ENOENT;
    if (!error)
        error = release(engine, region, discard);
    fork_end_lease(engine);
    guard_close(&mask);
    engine_unlock(engine);
    check_step(engine);
    return error;
}

static int unmerge(ksmpy_engine *engine, uint32_t region)
{
    struct unmerging work;
    unmerging_begin(engine, &work, region, false);
    int error = give_back(engine, &work);
    unmerging_end(engine, &work);
    return error;
}

int ksmpy_unmerge_region(ksmpy_engine *engine, uint32_t region)
{
    if (engine->forked)
        return -EPERM;
    sigset_t mask;
    engine_lock(engine);
    guard_open(&mask);
    int error = known(engine, region) ? unmerge(engine, region) : -ENOENT;
    guard_close(&mask);
    engine_unlock(engine);
    check_step(engine);
    return error;
}

/* New regions come last, and have nothing merged while no pass runs. */
int ksmpy_unmerge(ksmpy_engine *engine)
{
    int failure = 0;
    sigset_t mask;
    if (engine->forked)
        return -EPERM;
    pass_lock(engine);
    guard_open(&mask);
    engine_lock(engine);
    for (uint32_t id = 0; id < engine->region_count; id++) {
        int error = known(engine, id) ? unmerge(engine, id) : 0;
        engine_let_others_in(engine);
        if (error != -ENOENT) /* it was released meanwhile */
            failure = failure ? failure : error;
    }
    store_reap(&engine->store);
    cursor_reset(engine);
    engine_unlock(engine);
    guard_close(&mask);
    pthread_mutex_unlock(&engine->pass);
    check_step(engine);
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

int64_t ksmpy_find_region(ksmpy_engine *engine, uintptr_t address, size_t length)
{
    engine_lock(engine);
    uint32_t id = find_overlap(engine, address, length >> PAGE_SHIFT);
    engine_unlock(engine);
    return id == NO_REGION ? -ENOENT : (int64_t)id;
}

int ksmpy_set_vma_flags(ksmpy_engine *engine, uint32_t region, int vma_flags)
{
    engine_lock(engine);
    int error = known(engine, region) ? 0 : -ENOENT;
    if (!error)
        region_at(engine, region)->vma_flags = vma_flags;
    engine_unlock(engine);
    return error;
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
    check_step(engine);
    return error;
}
