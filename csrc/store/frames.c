#include "store/frames.h"

#include <errno.h>
#include <stdatomic.h>
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
#include "store/pool.h"
#include "store/punch.h"
#include "store/reap.h"
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
    for (uint64_t i = 0; store->broken && first != NO_FRAME && i < *n; i++)
        store_free(store, first + (uint32_t)i);
    if (store->broken)
        first = NO_FRAME;
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
    if (!store_has_write_file(store))
        return -EBADF;
    return os_write(store->write_fd, frame_offset(store, first), pages, n);
}

int64_t store_gather(struct store *store, uint32_t first, const void *const *pages, uint64_t n)
{
    struct iovec from[STORE_GATHER];
    for (uint64_t i = 0; i < n; i++)
        from[i] = (struct iovec){(void *)(uintptr_t)pages[i], PAGE_SIZE};
    if (!store_has_write_file(store))
        return -EBADF;
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

/*
 * Where a debt could not be noted it may have been a pin, of any frame: so no frame is left any more
 * that its mapping may need.
 */
void store_leave(struct store *store, uint32_t frame)
{
    if (store->bankrupt && store->pinned)
        return;
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

/* What a child inherits from now on it holds by a slot of its own. */
void store_pins_are_gone(struct store *store)
{
    store->pinned = false;
    store_disinherit(store);
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

/* More may be added at the end meanwhile: by a rebuild, if the lock's last owner has died. */
static void punch_first(struct store *store, uint64_t n)
{
    uint32_t *dead = (uint32_t *)(void *)store->dead.base;
    uint64_t done = punch_frames(store, dead, n);
    store->dead_count -= done;
    memmove(dead, dead + done, store->dead_count * sizeof *dead);
}

/* A forked child, which has no part in the store's memory, flushes nothing. */
static void flush(struct store *store, bool all)
{
    if (!store->memory)
        return;
    bool spare = all ? store->head->spare_frames : too_many_spare(store);
    if (!store->dead_count && !spare)
        return;
    punch_first(store, spare_dead_frames(store));
    bool in_hand = store->depth; /* the lock, for which others wait: to let extents go takes long */
    if (!in_hand && (all || too_many_spare(store)))
        spare_at_most(store, all ? 0 : store->head->spare_frames / 2);
}

void store_flush(struct store *store)
{
    flush(store, false);
}

void store_flush_all(struct store *store)
{
    flush(store, true);
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
