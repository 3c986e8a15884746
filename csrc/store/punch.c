#include "store/punch.h"

#include <stdlib.h>

#include "base/pages.h"
#include "os/files.h"
#include "store/extents.h"
#include "store/files.h"
#include "store/lock.h"
#include "store/pool.h"
#include "store/store.h"

static int by_index(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

void sort_frames(uint32_t *frames, uint64_t n)
{
    if (n)
        qsort(frames, n, sizeof *frames, by_index);
}

/* false: the lock was not to be had, so the frames stay DEAD and ours. */
static bool punch(struct store *store, uint32_t first, uint64_t n)
{
    bool done = store_has_write_file(store) &&
                os_punch(store->write_fd, frame_offset(store, first), bytes_of(n)) == 0;
    if (!store_lock(store))
        return false;
    if (done) {
        pool_give(store, first, n);
        extents_gave(store, first, n);
    }
    for (uint64_t i = 0; i < n && !done; i++)
        pool_leave_to_flush(store, first + (uint32_t)i);
    store_unlock(store);
    return true;
}

uint64_t punch_frames(struct store *store, uint32_t *frames, uint64_t n)
{
    uint64_t done = 0;
    sort_frames(frames, n);
    for (uint64_t end; done < n; done = end) {
        uint32_t first = frames[done];
        for (end = done + 1; end < n && frames[end] == first + (end - done); end++)
            if (frame_node(store, frames[end]) != frame_node(store, first))
                break;
        if (!punch(store, first, end - done))
            break;
    }
    return done;
}
