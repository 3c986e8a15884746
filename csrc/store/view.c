#include "store/view.h"

#include <errno.h>
#include <string.h>

#include "base/pages.h"
#include "os/clock.h"
#include "os/map.h"
#include "os/numa.h"
#include "store/store.h"

#define SHOW_STEP ((uint64_t)1 << 8) /* frames made readable ahead at least: 1 MiB */

/* Makes a node's frames below high readable, and a sixteenth more, to do so less often. */
static int show(struct store *store, int node, uint64_t high)
{
    uint64_t known = store->readable[node], span = (uint64_t)1 << store->span_shift;
    uint64_t n = least(high + high / 16 + SHOW_STEP, span) - known;
    uintptr_t address = (uintptr_t)store->memory;
    int error = os_protect(address + bytes_of(first_frame(store, node) + known), n, false);
    if (!error)
        store->readable[node] = known + n;
    return error;
}

int store_begin_to_show(struct store *store)
{
    int error = 0;
    memset(store->readable, 0, sizeof store->readable);
    for (int node = 0; node < store->nodes && !error; node++)
        error = show(store, node, 0);
    return error;
}

#define SHOW_TRIES 2000 /* 50 us apart: 0.1 s, until the store is given up */

/*
 * The readable part grows into the part behind it, which takes no mapping and next to no memory.
 * So ENOMEM is expected to pass, and is waited for.
 */
int store_show(struct store *store)
{
    int error = 0, tries = SHOW_TRIES;
    for (int node = 0; node < store->nodes && store->memory; node++) {
        uint64_t high = least(store->ids[node].state->high, (uint64_t)1 << store->span_shift);
        while (high > store->readable[node] && (error = show(store, node, high)) == -ENOMEM &&
               tries--)
            os_sleep_us(50);
        if (error)
            return error;
    }
    return 0;
}

#define LOOK_AWAY 256 /* pieces of FAULT_AROUND pages that may be in our RSS: 16 MiB */

/* A read may have made the kernel map the whole huge page around it, hence the margin. */
void store_look_away(struct store *store, bool at_once)
{
    struct frames_read *read = &store->read;
    if (!store->memory || !read->pieces || (!at_once && read->pieces < LOOK_AWAY))
        return;
    uint64_t first = read->first > HUGE_PAGES ? read->first - HUGE_PAGES : 0;
    uint64_t end = least(read->end + HUGE_PAGES, frame_limit(store));
    os_look_away((uintptr_t)store->memory + bytes_of(first), end - first);
    read->pieces = 0;
}

void store_place(const struct store *store, const int *node_ids)
{
    size_t span = bytes_of((uint64_t)1 << store->span_shift);
    for (int node = 0; node_ids && store->nodes > 1 && node < store->nodes; node++)
        os_bind((uint8_t *)(uintptr_t)store->memory + span * (size_t)node, span, node_ids[node]);
}
