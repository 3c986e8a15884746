/* Frames follow their memory from node to node. */
#include "scan/migrate.h"

#include "base/checksum.h"
#include "base/pages.h"
#include "os/numa.h"
#include "pages/pages.h"
#include "pages/records.h"
#include "store/lock.h"
#include "store/pool.h"
#include "store/stable.h"
#include "store/store.h"
#include "store/view.h"

/*
 * The kernel tells the node only of pages that are in our page tables, so the frames are read.
 * Only live ones are: a read of a hole in the file would give it memory.  false: the lock is not to be
 * had.
 */
KSMPY_READS_LIVE_MEMORY static bool look_at(struct store *store, uint32_t first, uint64_t n)
{
    if (!store_lock(store))
        return false;
    for (uint32_t frame = first; frame < first + n; frame++)
        if (frame_is_live(store, frame))
            (void)*(const volatile uint8_t *)frame_bytes(store, frame);
    store_unlock(store);
    return true;
}

static void follow_chunk(struct pages *pages, uint32_t first, uint64_t n)
{
    struct store *store = &pages->store;
    int found[CHUNK];
    if (!look_at(store, first, n) ||
        os_nodes((uintptr_t)store->memory + bytes_of(first), n, found) < 0)
        return;
    for (uint64_t i = 0; i < n; i++) {
        uint32_t frame = first + (uint32_t)i;
        int node = node_index(pages, found[i]);
        if (!store_lock(store))
            return;
        if (node >= 0 && frame_is_live(store, frame) && node != frame_at(store, frame)->tree) {
            stable_remove(store, frame);
            stable_add(store, frame, node);
        }
        store_unlock(store);
    }
    store_look_away(store, true);
}

void frames_follow_nodes(struct pages *pages)
{
    const struct store *store = &pages->store;
    if (pages->knobs[KSMPY_KNOB_MERGE_ACROSS_NODES] || pages->nodes == 1 || pages->injected_nodes)
        return;
    for (int node = 0; node < pages->nodes; node++)
        for (uint64_t at = 0; at < store->ids[node].state->high; at += CHUNK) {
            uint64_t rest = store->ids[node].state->high - at;
            uint32_t first = (uint32_t)at + first_frame(store, node);
            follow_chunk(pages, first, least(rest, CHUNK));
        }
}
