#include "store/extents.h"

#include "os/arena.h"
#include "os/files.h"
#include "os/map.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/store.h"

#define LONGEST_PAUSE 9 /* log2 of tries that are left out */

uint64_t extent_used(const struct store *store, uint32_t extent)
{
    return ids_used(&store->ids[frame_node(store, extent)], frame_local(store, extent), EXTENT);
}

static uint64_t in_huge_extents(const struct store *store, uint32_t first, uint64_t n)
{
    uint64_t count = 0;
    for (uint64_t i = 0, part; i < n; i += part) {
        uint32_t frame = first + (uint32_t)i;
        part = least(n - i, EXTENT - frame % EXTENT);
        count += is_in_huge_extent(store, frame) ? part : 0;
    }
    return count;
}

void extents_took(struct store *store, uint32_t first, uint64_t n)
{
    store->head->spare_frames -= in_huge_extents(store, first, n);
}

void extents_gave(struct store *store, uint32_t first, uint64_t n)
{
    store->head->spare_frames += in_huge_extents(store, first, n);
}

void extent_becomes_huge(struct store *store, uint32_t extent)
{
    store->head->huge_extents++;
    frame_at(store, extent)->huge = 1;
}

void extent_becomes_plain(struct store *store, uint32_t extent)
{
    store->head->huge_extents--;
    frame_at(store, extent)->huge = 0;
}

static uint64_t frames_in_use(const struct store *store)
{
    uint64_t frames = 0;
    for (int node = 0; node < store->nodes; node++)
        frames += store->ids[node].state->used;
    return frames;
}

bool too_many_spare(const struct store *store)
{
    return store->head->spare_frames > frames_in_use(store) / SPARE_SHARE;
}

void extents_count(const struct store *store, uint64_t *huge, uint64_t *spare)
{
    *huge = *spare = 0;
    for (int node = 0; node < store->nodes; node++)
        for (uint64_t at = 0; at < store->ids[node].state->high; at += EXTENT) {
            uint32_t extent = (uint32_t)at + first_frame(store, node);
            if (!frame_at(store, extent)->huge)
                continue;
            *huge += 1;
            *spare += EXTENT - extent_used(store, extent);
        }
}

bool extents_can_be_had(struct store *store)
{
    if (!store->huge_pause)
        return true;
    store->huge_pause--;
    return false;
}

static void *in_view(const struct store *store, uint32_t frame)
{
    return page_at((uintptr_t)store->memory, frame);
}

/* 0, or the last error, which may be that of a part only. */
static int collapse(const struct store *store, uint32_t first, uint64_t n)
{
    for (uint64_t i = 0; i < n; i += EXTENT) /* what has no page yet is passed over */
        os_put(store->write_fd, frame_offset(store, first + (uint32_t)i), "", 1);
    return os_collapse((uintptr_t)in_view(store, first), n);
}

static void note_huge(struct store *store, uint32_t first, uint64_t n)
{
    if (!store_lock(store))
        return; /* frames like others, which happen to lie on huge pages */
    for (uint64_t i = 0; i < n; i += EXTENT)
        extent_becomes_huge(store, first + (uint32_t)i);
    store_unlock(store);
}

/* One call for all of them: each makes all processors give their lists of pages back. */
void extents_become_huge(struct store *store, uint32_t first, uint64_t n)
{
    int error = collapse(store, first, n);
    if (!error)
        note_huge(store, first, n);
    for (uint64_t i = 0; error && i < n && n > EXTENT; i += EXTENT)
        if (collapse(store, first + (uint32_t)i, EXTENT) == 0)
            note_huge(store, first + (uint32_t)i, EXTENT);
    store->huge_error = error;
    store->huge_failures = !error ? 0 : store->huge_failures + (store->huge_failures < LONGEST_PAUSE);
    store->huge_pause = error ? 1U << store->huge_failures : 0;
}
