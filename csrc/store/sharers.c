#include "store/sharers.h"

#include <errno.h>

#include "os/arena.h"
#include "store/board.h"
#include "store/layout.h"
#include "store/pool.h"
#include "store/slots.h"
#include "store/stable.h"
#include "store/store.h"

/* How many of a frame's sharers are this process's; a private store's all are, and go uncounted. */
static uint32_t *count_of(const struct store *store, uint32_t frame)
{
    return arena_at(&store->counts[frame_node(store, frame)], frame_local(store, frame));
}

static bool may_join(const struct store *store, uint32_t frame)
{
    if (!store->shared)
        return true;
    const struct frame *record = frame_at(store, frame);
    if (record->state == FRAME_FILLING)
        return record->owner == store->slot;
    return record->state == FRAME_LIVE && has_room(store, record);
}

void store_rejoin(struct store *store, uint32_t frame)
{
    struct store_head *head = store->head;
    struct frame *record = frame_at(store, frame);
    if (store->shared) {
        ++*count_of(store, frame);
        head->slots[store->slot].pages++;
    }
    head->shared_pages++;
    if (record->sharers++ == 0) {
        head->shared_frames++;
        head->stale_frames -= record->state == FRAME_LIVE;
    }
}

int64_t sharers_join(struct store *store, uint32_t first, uint64_t n)
{
    int error = 0;
    uint64_t i = 0;
    if (store->shared)
        error = arena_grow(&store->counts[frame_node(store, first)], frame_local(store, first) + n);
    for (; !error && i < n && may_join(store, first + (uint32_t)i); i++)
        store_rejoin(store, first + (uint32_t)i);
    return error ? error : i ? (int64_t)i : -ESTALE;
}

void free_live_frame(struct store *store, uint32_t frame)
{
    stable_remove(store, frame);
    store_free(store, frame);
}

void store_drop(struct store *store, uint32_t frame, uint32_t n)
{
    struct frame *record = frame_at(store, frame);
    store->head->shared_pages -= n;
    record->sharers -= n;
    if (record->sharers || !n)
        return;
    store->head->shared_frames--;
    record->left = store->head->forks;
    if (record->state != FRAME_LIVE)
        return; /* its maker will free it */
    if (store_leased(store, record))
        store->head->stale_frames++;
    else
        free_live_frame(store, frame);
}

void sharers_leave(struct store *store, uint32_t frame)
{
    if (store->shared) {
        --*count_of(store, frame);
        store->head->slots[store->slot].pages--;
        if (is_full(store, frame_at(store, frame)))
            event_add(store, frame_at(store, frame)->tree, frame_at(store, frame)->sum);
    }
    store_drop(store, frame, 1);
}

void sharers_pin(struct store *store, uint32_t frame)
{
    if (*count_of(store, frame) & PINNED)
        return;
    *count_of(store, frame) |= PINNED;
    frame_at(store, frame)->pins++;
}

/* A count that has come to its end says no more how many pins there are: such a frame stays pinned. */
void store_unpin(struct store *store, uint32_t frame)
{
    struct frame *record = frame_at(store, frame);
    if (store->shared && !(*count_of(store, frame) & PINNED))
        return;
    if (store->shared)
        *count_of(store, frame) &= ~PINNED;
    if (record->pins && record->pins < UINT16_MAX)
        record->pins--;
    if (!record->sharers)
        record->left = store->head->forks; /* until now children have inherited that mapping */
}

void store_publish(struct store *store, uint32_t frame, int tree)
{
    stable_add(store, frame, tree);
    event_add(store, tree, frame_at(store, frame)->sum);
}
