#include "store/frames.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "base/pages.h"
#include "os/files.h"
#include "store/board.h"
#include "store/collapse.h"
#include "store/debts.h"
#include "store/extents.h"
#include "store/files.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/members.h"
#include "store/pool.h"
#include "store/room.h"
#include "store/sharers.h"
#include "store/slots.h"
#include "store/spare.h"
#include "store/store.h"
#include "store/view.h"

typedef uint32_t take_some(struct store *store, int node, uint64_t *n);

static uint32_t take(struct store *store, int node, take_some *some, uint64_t *n)
{
    *n = least(*n, store_room(store));
    if (!*n || store->broken || !store_lock(store))
        return NO_FRAME;
    uint32_t first = some(store, node, n);
    store->broken = store_show(store);
    if (store->broken && first != NO_FRAME) {
        pool_give(store, first, *n);
        first = NO_FRAME;
    }
    store_unlock(store);
    return first;
}

uint32_t store_take(struct store *store, int node, uint64_t *n)
{
    return take(store, node, pool_take, n);
}

uint32_t store_take_in_step(struct store *store, int node, uint64_t page, uint64_t *n,
                            bool *extents)
{
    uint64_t before = (EXTENT - page % EXTENT) % EXTENT;
    uint64_t whole = least(*n / EXTENT, MOST_EXTENTS) * EXTENT;
    bool some = *n >= before + EXTENT && extents_can_be_had(store);
    if (some && before)
        *n = before;
    uint32_t first = some && !before ? take(store, node, pool_take_extents, &whole) : NO_FRAME;
    *extents = first != NO_FRAME;
    if (!*extents)
        return store_take(store, node, n);
    *n = whole;
    return first;
}

/*
 * pwrite() takes a third less time than to map fresh pages and copy there, since pages that are
 * written as a whole are not cleared first.
 */
int64_t store_fill(struct store *store, uint32_t first, const void *pages, uint64_t n)
{
    return os_write(store->write_fd, frame_offset(store, first), pages, n);
}

int64_t store_gather(struct store *store, uint32_t first, const void *const *pages, uint64_t n)
{
    struct iovec from[STORE_GATHER];
    for (uint64_t i = 0; i < n; i++)
        from[i] = (struct iovec){(void *)(uintptr_t)pages[i], PAGE_SIZE};
    return os_write_from(store->write_fd, frame_offset(store, first), from, n);
}

int64_t store_join(struct store *store, uint32_t first, uint64_t n)
{
    if (!store_lock(store))
        return store_why_not(store);
    int64_t joined = sharers_join(store, first, n);
    store_unlock(store);
    return joined;
}

void store_leave(struct store *store, uint32_t frame)
{
    store_settle(store, (struct debt){.kind = DEBT_LEAVE, .frame = frame});
}

void store_pin(struct store *store, uint32_t frame)
{
    uint16_t *pins = &frame_at(store, frame)->pins;
    store->pinned = true;
    if (!store->shared) {
        *pins += *pins < UINT16_MAX;
        return;
    }
    store_bequeath(store); /* a child inherits the mapping too, so it has to keep our slot held */
    store_settle(store, (struct debt){.kind = DEBT_PIN, .frame = frame});
}

void store_give_back(struct store *store, uint32_t first, uint64_t n)
{
    bool locked = store_lock(store);
    for (uint64_t i = 0; i < n; i++)
        if (locked)
            store_free(store, first + (uint32_t)i);
        else
            store_owe(store, (struct debt){.kind = DEBT_FREE, .frame = first + (uint32_t)i});
    if (locked)
        store_unlock(store);
}

static int by_index(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* false: the lock was not to be had, so the frames stay DEAD and ours until a later flush. */
static bool punch(struct store *store, uint32_t first, uint64_t n)
{
    bool done = os_punch(store->write_fd, frame_offset(store, first), bytes_of(n)) == 0;
    if (!store_lock(store))
        return false;
    if (done)
        pool_give(store, first, n);
    for (uint64_t i = 0; i < n && !done; i++)
        store_free(store, first + (uint32_t)i); /* tried again at the next flush */
    store_unlock(store);
    return true;
}

static void sort_dead(struct store *store)
{
    if (store->dead_count)
        qsort(store->dead.base, store->dead_count, sizeof(uint32_t), by_index);
}

/*
 * Punches the dead frames, neighbours together.  More may be added at the end meanwhile: by a
 * rebuild, if the lock's last owner has died, and where a hole could not be punched.
 */
static void punch_dead(struct store *store)
{
    sort_dead(store);
    uint64_t count = store->dead_count, done = 0;
    uint32_t *dead = (uint32_t *)(void *)store->dead.base;
    for (uint64_t end; done < count; done = end) {
        uint32_t first = dead[done];
        for (end = done + 1; end < count && dead[end] == first + (end - done); end++)
            if (frame_node(store, dead[end]) != frame_node(store, first))
                break;
        if (!punch(store, first, end - done))
            break;
    }
    store->dead_count -= done;
    memmove(dead, dead + done, store->dead_count * sizeof *dead);
}

/*
 * A forked child, which has no part in the store's memory, flushes nothing.  Each slice ends with a
 * flush and most of them punch nothing, so the descriptors are looked at only if there is a frame
 * to be punched; to make a frame of a huge page spare takes none.
 */
void store_flush(struct store *store)
{
    if (!store->memory)
        return;
    sort_dead(store);
    spare_dead_frames(store);
    bool too_many = too_many_spare(store);
    if (!(store->dead_count || too_many) || !store_has_files(store))
        return;
    if (too_many)
        spare_at_most(store, store->head->spare_frames / 2);
    punch_dead(store);
}

void store_flush_all(struct store *store)
{
    store_flush(store);
    if (!store->memory || !(store->dead_count || store->head->spare_frames) ||
        !store_has_files(store))
        return;
    spare_at_most(store, 0);
    punch_dead(store);
}

#define REAP_STEP 4096 /* frames that are looked at before the lock is given back */

static void reap_some(struct store *store, int node, uint64_t local, uint64_t end)
{
    if (!store_lock(store))
        return;
    for (; local < end; local++) {
        uint32_t frame = (uint32_t)local + first_frame(store, node);
        const struct frame *record = frame_at(store, frame);
        if (!frame_is_live(store, frame) || record->sharers || store_leased(store, record))
            continue;
        store->head->stale_frames--;
        free_live_frame(store, frame);
    }
    store_unlock(store);
}

bool store_reap(struct store *store)
{
    slots_reap(store);
    for (int node = 0; node < store->nodes && store->head->stale_frames; node++) {
        uint64_t high = store->ids[node].state->high;
        for (uint64_t at = 0; at < high; at += REAP_STEP)
            reap_some(store, node, at, high - at < REAP_STEP ? high : at + REAP_STEP);
    }
    store_flush(store);
    return store->head->stale_frames == 0;
}

void store_look_for_room(struct store *store)
{
    if (!atomic_load(&store->head->full))
        return;
    store_flush_all(store);
    if (!room_beside(store, 2) || !store_lock(store))
        return;
    atomic_store(&store->head->full, false);
    events_reset(store); /* makes everybody who waits look all pages up again */
    store_unlock(store);
}
