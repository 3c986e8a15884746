/*
 * Shared stores on a file system that has a size of its own: /dev/shm in a container, say.
 *
 * Frames take what there is but for a reserve, which is the index's: a frame is of no use to who
 * has no memory for its record, or to count his sharers of it.  Where that much is taken the store
 * is full.  Nobody makes frames for others then, which would only fail, and each such failure would
 * be an event for everybody who waits.  Frames that nobody has joined for some passes go back to their
 * owners (see merge/lonely.c), so that what others have as well comes to have room.
 */
#include "store/room.h"

#include <errno.h>
#include <stdatomic.h>

#include "base/pages.h"
#include "os/files.h"
#include "store/files.h"
#include "store/layout.h"
#include "store/slots.h"
#include "store/store.h"

/*
 * The reserve is one part in so many of the file system's memory.  A smaller one would run out first
 * where many processes count sharers; a larger one leaves less for frames.
 */
#define RESERVE 64
#define COUNTED 8192 /* by so many frames the memory for counts grows: 32 KiB for each process */

uint64_t room_beside(const struct store *store, uint64_t parts)
{
    uint64_t size, left;
    if (!store->shared || !os_file_room(store->write_fd, &size, &left) ||
        !store_has_write_file(store))
        return UINT64_MAX;
    uint64_t reserve = parts * (size / RESERVE);
    return left > reserve ? left - reserve : 0;
}

void store_fills_up(struct store *store)
{
    if (store->shared)
        atomic_store(&store->head->full, true);
}

uint64_t store_room(struct store *store)
{
    uint64_t room = atomic_load(&store->head->full) ? 0 : room_beside(store, 1);
    if (!room)
        store_fills_up(store);
    return room;
}

static int allocate_counts(const struct store *store, unsigned slot, int node, uint64_t from,
                           uint64_t to)
{
    uint64_t first = first_frame(store, node) + from;
    to = least(to, (uint64_t)1 << store->span_shift); /* the file may say more than there can be */
    if (from >= to)
        return 0;
    if (!store_has_lock_file(store))
        return -EBADF;
    return os_allocate(store->lock_fd, counts_offset(store, slot) + first * sizeof(uint32_t),
                       (to - from) * sizeof(uint32_t));
}

int store_count_for_all(struct store *store, int node, uint64_t high)
{
    uint64_t *counted = &store->head->node[node].counted, size, left;
    if (!store->shared || high <= *counted || !os_file_room(store->write_fd, &size, &left))
        return 0;
    uint64_t to = least((high / COUNTED + 1) * COUNTED, (uint64_t)1 << store->span_shift);
    for (unsigned slot = 0; slot < store->head->slots_end; slot++) {
        if (atomic_load(&store->head->slots[slot].kind) != SLOT_ENGINE)
            continue;
        int error = allocate_counts(store, slot, node, *counted, to);
        if (error)
            return error;
    }
    *counted = to;
    return 0;
}

void store_count_for(struct store *store, unsigned slot)
{
    for (int node = 0; node < store->nodes; node++)
        if (store->head->node[node].counted)
            allocate_counts(store, slot, node, 0, store->head->node[node].counted);
}
