#include "store/pool.h"

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "base/pages.h"
#include "base/rbtree.h"
#include "os/arena.h"
#include "os/files.h"
#include "store/extents.h"
#include "store/files.h"
#include "store/layout.h"
#include "store/room.h"
#include "store/store.h"

/*
 * The owner is written before the state: if the process dies in between, a frame that is being
 * filled or freed must never name another one as its owner.
 */
static void set_state(struct store *store, uint32_t frame, enum frame_state state)
{
    frame_at(store, frame)->owner = (uint16_t)store->slot;
    atomic_signal_fence(memory_order_seq_cst);
    frame_at(store, frame)->state = (uint8_t)state;
}

/*
 * Takes ids of frames.  Each process has to have memory to count the sharers of every frame below the
 * high mark, so if there is none the mark goes back to where it was.
 */
static uint32_t take_ids(struct store *store, int node, bool whole, uint64_t *n)
{
    struct ids *ids = &store->ids[node];
    uint64_t high = ids->state->high;
    uint32_t local = whole ? ids_take_blocks(ids, EXTENT, n) : ids_take(ids, n);
    if (local != NO_INDEX && store_count_for_all(store, node, local + *n) < 0) {
        ids_give(ids, local, *n);
        ids->state->high = high;
        return NO_FRAME;
    }
    return local == NO_INDEX ? NO_FRAME : local + first_frame(store, node);
}

void pool_give(struct store *store, uint32_t first, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        frame_at(store, first + (uint32_t)i)->state = FRAME_FREE;
    ids_give(&store->ids[frame_node(store, first)], frame_local(store, first), n);
}

/* What the record says of an extent is never written: others read it without the lock. */
static void begin_to_use(struct store *store, uint32_t first, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        struct frame *frame = frame_at(store, first + (uint32_t)i);
        memset(frame, 0, offsetof(struct frame, extent));
        frame->dup_next = frame->dup_prev = NO_FRAME;
        frame->born = store->head->forks;
        set_state(store, first + (uint32_t)i, FRAME_FILLING);
    }
    extents_took(store, first, n);
}

static uint32_t take(struct store *store, int node, bool whole, uint64_t *n)
{
    uint32_t first = take_ids(store, node, whole, n);
    if (first != NO_FRAME)
        begin_to_use(store, first, *n);
    return first;
}

uint32_t pool_take(struct store *store, int node, uint64_t *n)
{
    return take(store, node, false, n);
}

/* They count as huge before they are: a process that dies in between tells nobody. */
uint32_t pool_take_extents(struct store *store, int node, uint64_t *n)
{
    uint32_t first = take(store, node, true, n);
    for (uint64_t i = 0; first != NO_FRAME && i < *n; i += EXTENT)
        extent_becomes_huge(store, first + (uint32_t)i);
    return first;
}

bool pool_reaches(struct store *store, uint32_t extent)
{
    int node = frame_node(store, extent);
    uint64_t end = (uint64_t)frame_local(store, extent) + EXTENT;
    return end <= store->ids[node].state->high ||
           (store_count_for_all(store, node, end) == 0 && ids_reach(&store->ids[node], end));
}

bool pool_take_this(struct store *store, uint32_t frame)
{
    struct ids *ids = &store->ids[frame_node(store, frame)];
    if (frame_local(store, frame) >= ids->state->high)
        return false;
    ids_mark(ids, frame_local(store, frame));
    begin_to_use(store, frame, 1);
    return true;
}

/*
 * If the list of dead frames cannot grow, the frame keeps its memory until the store is closed.  An
 * error would help nobody: the callers could not do anything about it.
 */
void pool_leave_to_flush(struct store *store, uint32_t frame)
{
    if (arena_grow(&store->dead, store->dead_count + 1) == 0)
        *(uint32_t *)arena_at(&store->dead, store->dead_count++) = frame;
}

void frame_is_dead(struct store *store, uint32_t frame)
{
    set_state(store, frame, FRAME_DEAD);
}

void store_free(struct store *store, uint32_t frame)
{
    frame_is_dead(store, frame);
    pool_leave_to_flush(store, frame);
}

bool frame_is_live(const struct store *store, uint32_t frame)
{
    if (frame >> store->span_shift >= (uint32_t)store->nodes)
        return false;
    return ids_has(&store->ids[frame_node(store, frame)], frame_local(store, frame)) &&
           frame_at(store, frame)->state == FRAME_LIVE;
}

uint64_t store_bytes(const struct store *store)
{
    uint64_t frames = 0;
    for (int node = 0; node < store->nodes; node++)
        frames += store->ids[node].state->used;
    return bytes_of(frames);
}

/*
 * What the file has beside frames.  Where it gets larger folios each part of the index, and the counts of
 * each process, lie on some of their own: what is in use of them says little of what they take.
 */
static uint64_t beside_frames(const struct store *store)
{
    int64_t memory = store->large_folios && store_has_write_file(store)
                         ? os_file_memory(store->write_fd) - (int64_t)store_bytes(store)
                         : 0;
    return memory > 0 ? (uint64_t)memory : 0;
}

static uint64_t table_bytes(const struct store *store)
{
    uint64_t bytes = sizeof *store->head;
    for (int node = 0; node < store->nodes; node++) {
        uint64_t high = store->ids[node].state->high;
        bytes += high * sizeof(struct frame) + ids_words(high) * sizeof(uint64_t) +
                 store->stable[node].state->trees * sizeof(struct rb_tree) +
                 store->counts[node].committed * sizeof(uint32_t);
    }
    return bytes + (2 * store->head->announced_size + store->events.committed) * sizeof(uint64_t);
}

/* A shared store has its tables in the file, and a private one beside it. */
uint64_t store_metadata_bytes(const struct store *store)
{
    uint64_t own =
        store->dead.committed * store->dead.stride + store->debts.committed * store->debts.stride;
    uint64_t tables = table_bytes(store), file = beside_frames(store);
    return own + (!store->shared ? tables + file : tables > file ? tables : file);
}
