#include "store/spare.h"

#include <string.h>

#include "base/pages.h"
#include "os/arena.h"
#include "store/extents.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/pool.h"
#include "store/store.h"

#define STEP 8 /* extents that are looked at before the lock is given back */

/*
 * Makes an extent one like others, with the lock held: its spare frames become dead ones, which are
 * free once they were punched.  A process that dies here leaves an extent of which too many frames
 * count as spare.
 */
static void let_go(struct store *store, uint32_t extent)
{
    for (uint32_t i = 0; i < EXTENT; i++)
        if (frame_at(store, extent + i)->state == FRAME_FREE && pool_take_this(store, extent + i))
            store_free(store, extent + i);
    extent_becomes_plain(store, extent);
}

static uint64_t same_extent(const uint32_t *frames, uint64_t n)
{
    uint64_t length = 1;
    while (length < n && extent_of(frames[length]) == extent_of(frames[0]))
        length++;
    return length;
}

/*
 * Do these dead frames of one extent, which are in order, have to be punched?  On a huge page they
 * become spare instead, unless they are the last ones in use: then the whole extent is let go.
 */
static bool have_to_go(struct store *store, const uint32_t *frames, uint64_t n)
{
    uint32_t extent = extent_of(frames[0]);
    if (!is_in_huge_extent(store, extent))
        return true;
    if (extent_used(store, extent) == n) {
        let_go(store, extent);
        return true;
    }
    for (uint64_t i = 0; i < n; i++)
        pool_give(store, frames[i], 1);
    return false;
}

bool spare_dead_frames(struct store *store)
{
    uint64_t count = store->dead_count, kept = 0, n = 0;
    uint32_t *dead = (uint32_t *)(void *)store->dead.base;
    uint64_t at = 0;
    for (; at < count && store_lock(store); at += n) {
        n = same_extent(dead + at, count - at);
        bool go = have_to_go(store, dead + at, n);
        store_unlock(store);
        if (go)
            memmove(dead + kept, dead + at, n * sizeof *dead);
        kept += go ? n : 0;
    }
    memmove(dead + kept, dead + at, (store->dead_count - at) * sizeof *dead);
    store->dead_count -= at - kept;
    return at == count;
}

static void let_some_go(struct store *store, int node, uint64_t from, uint64_t most,
                        uint64_t frames)
{
    uint64_t end = least(store->ids[node].state->high, from + STEP * EXTENT);
    if (!store_lock(store))
        return;
    for (uint64_t at = from; at < end && store->head->spare_frames > frames; at += EXTENT) {
        uint32_t extent = first_frame(store, node) + (uint32_t)at;
        if (is_in_huge_extent(store, extent) && EXTENT - extent_used(store, extent) >= most)
            let_go(store, extent);
    }
    store_unlock(store);
}

void spare_at_most(struct store *store, uint64_t frames)
{
    for (uint64_t most = EXTENT / 2; most; most /= 2)
        for (int node = 0; node < store->nodes; node++)
            for (uint64_t at = 0;
                 at < store->ids[node].state->high && store->head->spare_frames > frames;
                 at += STEP * EXTENT)
                let_some_go(store, node, at, most, frames);
}
