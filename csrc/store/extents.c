#include "store/extents.h"

#include "base/pages.h"
#include "os/arena.h"
#include "store/layout.h"
#include "store/store.h"

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
