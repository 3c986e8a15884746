#include "merge/publish.h"

#include "base/pages.h"
#include "merge/exchange.h"
#include "os/arena.h"
#include "os/guard.h"
#include "pages/pages.h"
#include "store/frames.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/pool.h"
#include "store/sharers.h"
#include "store/stable.h"
#include "store/store.h"

/* So many frames later the place that was prefetched for a checksum is in the cache. */
#define ROOT_BEHIND 8

/*
 * Another process may have made a frame of the same bytes since this one looked for it.  Returns that
 * frame, joined, or NO_FRAME where there is none with room.
 */
static uint32_t join_older(struct pages *pages, const struct batch *batch, uint64_t i, int tree)
{
    struct store *store = &pages->store;
    uint32_t frame = batch->frame + (uint32_t)i;
    uint32_t older =
        stable_find(store, tree, frame_at(store, frame)->sum, frame_bytes(store, frame), NO_FRAME);
    bool ours = older >= batch->taken && older < batch->taken_end;
    return older != NO_FRAME && !ours && store_join(store, older, 1) == 1 ? older : NO_FRAME;
}

/* Puts those new frames into the index that are needed.  The lock is held, and all are joined. */
static void choose_frames(struct pages *pages, struct batch *batch, int tree)
{
    struct store *store = &pages->store;
    for (uint64_t i = 0; i < batch->n; i++) {
        uint32_t frame = batch->frame + (uint32_t)i;
        uint32_t older = store->shared ? join_older(pages, batch, i, tree) : NO_FRAME;
        batch->onto[i] = older == NO_FRAME ? frame : older;
        if (older == NO_FRAME)
            continue;
        store_leave(store, frame);
        store_free(store, frame);
    }
    for (uint64_t i = 0; i < batch->n; i++)
        if (batch->onto[i] == batch->frame + (uint32_t)i)
            store_publish(store, batch->onto[i], tree);
}

static int tree_for(const struct pages *pages, const struct batch *batch)
{
    return tree_of(pages, page_node(page_record(pages, batch->page)));
}

void publish_sums(struct pages *pages, const struct batch *batch)
{
    struct store *store = &pages->store;
    uintptr_t bytes = (uintptr_t)frame_bytes(store, batch->frame);
    guard_touch(bytes, bytes + bytes_of(batch->n), bytes_of(FAULT_AROUND));
    int tree = tree_for(pages, batch);
    for (uint32_t frame = batch->frame; frame < batch->frame + batch->n; frame++) {
        frame_at(store, frame)->sum = store_sum(store, frame_bytes(store, frame));
        stable_prefetch(store, tree, frame_at(store, frame)->sum);
        if (frame - batch->frame >= ROOT_BEHIND)
            stable_prefetch_root(store, tree, frame_at(store, frame - ROOT_BEHIND)->sum);
    }
}

int publish_frames(struct pages *pages, struct batch *batch)
{
    struct store *store = &pages->store;
    if (!store_lock(store))
        return store_why_not(store);
    int64_t joined = join_frames(pages, batch->frame, batch->n);
    if (joined > 0)
        choose_frames(pages, batch, tree_for(pages, batch));
    store_unlock(store);
    return joined < 0 ? (int)joined : 0;
}
