#include "store/extents.h"

#include "base/pages.h"
#include "os/arena.h"
#include "store/layout.h"
#include "store/store.h"

static uint16_t *mark(const struct store *store, uint32_t extent)
{
    return &frame_at(store, extent)->extent;
}

static uint64_t known_of(const struct store *store, int node)
{
    return (store->ids[node].state->high + EXTENT - 1) / EXTENT;
}

uint64_t extents_known(const struct store *store)
{
    uint64_t count = 0;
    for (int node = 0; node < store->nodes; node++)
        count += known_of(store, node);
    return count;
}

uint32_t extent_at(const struct store *store, uint64_t number)
{
    int node = 0;
    while (node + 1 < store->nodes && number >= known_of(store, node))
        number -= known_of(store, node++);
    return first_frame(store, node) + (uint32_t)number * EXTENT;
}

uint64_t extent_used(const struct store *store, uint32_t extent)
{
    const struct ids *ids = &store->ids[frame_node(store, extent)];
    return ids_used(ids, frame_local(store, extent), EXTENT) - extent_spare(store, extent);
}

/* Where the file may get large folios, nobody knows how large those are on which a frame is. */
void extents_took(struct store *store, uint32_t first, uint64_t n)
{
    if (!store->large_folios)
        return;
    for (uint32_t extent = extent_of(first); extent < first + n; extent += EXTENT)
        if (!(*mark(store, extent) & EXTENT_LARGE))
            *mark(store, extent) = EXTENT_LARGE | EXTENT_TORN;
}

void extents_gave(struct store *store, uint32_t first, uint64_t n)
{
    uint32_t extent = extent_of(first + EXTENT - 1);
    for (; extent + EXTENT <= first + n; extent += EXTENT)
        if (*mark(store, extent))
            extent_becomes_plain(store, extent);
}

static void count_spare(struct store *store, uint32_t extent, int more)
{
    uint16_t *is = mark(store, extent);
    if (more < 0 && !(*is & EXTENT_SPARE))
        return; /* somebody has written to the file who should not have */
    *is = (uint16_t)(*is + more);
    store->head->spare_frames += (uint64_t)(int64_t)more;
    if (*is & EXTENT_TORN)
        store->head->torn_spare_frames += (uint64_t)(int64_t)more;
}

void frame_becomes_spare(struct store *store, uint32_t frame)
{
    frame_at(store, frame)->state = FRAME_SPARE;
    count_spare(store, extent_of(frame), 1);
}

void frame_is_spare_no_more(struct store *store, uint32_t frame)
{
    count_spare(store, extent_of(frame), -1);
}

void extent_becomes_huge(struct store *store, uint32_t extent)
{
    store->head->huge_extents += !is_huge(*mark(store, extent));
    *mark(store, extent) = EXTENT_LARGE;
}

void extent_is_torn(struct store *store, uint32_t extent)
{
    if (!is_huge(*mark(store, extent)))
        return;
    store->head->huge_extents--;
    store->head->torn_spare_frames += extent_spare(store, extent);
    *mark(store, extent) |= EXTENT_TORN;
}

void extent_becomes_plain(struct store *store, uint32_t extent)
{
    store->head->huge_extents -= is_huge(*mark(store, extent));
    *mark(store, extent) = 0;
}

static uint64_t frames_in_use(const struct store *store)
{
    uint64_t frames = 0;
    for (int node = 0; node < store->nodes; node++)
        frames += store->ids[node].state->used;
    return frames - store->head->spare_frames;
}

uint64_t store_spare_frames(const struct store *store)
{
    return store->memory ? store->head->spare_frames : 0;
}

bool too_many_spare(const struct store *store)
{
    return store->head->spare_frames > frames_in_use(store) / SPARE_SHARE;
}

static uint16_t count_states(const struct store *store, uint32_t extent)
{
    uint64_t high = store->ids[frame_node(store, extent)].state->high;
    uint32_t n = (uint32_t)least(high - frame_local(store, extent), EXTENT);
    uint16_t spare = 0;
    for (uint32_t frame = extent; frame < extent + n; frame++)
        spare = (uint16_t)(spare + (frame_at(store, frame)->state == FRAME_SPARE));
    return spare;
}

struct extents_seen extents_count(const struct store *store)
{
    struct extents_seen seen = {0};
    for (uint64_t i = 0; i < extents_known(store); i++) {
        uint32_t extent = extent_at(store, i);
        uint16_t is = *mark(store, extent), spare = count_states(store, extent);
        seen.huge += is_huge(is);
        seen.spare += spare;
        seen.torn_spare += is & EXTENT_TORN ? spare : 0;
        seen.wrong += (is & EXTENT_SPARE) != spare || (is && !(is & EXTENT_LARGE));
    }
    return seen;
}

void extents_recount(struct store *store)
{
    for (uint64_t i = 0; i < extents_known(store); i++) {
        uint32_t extent = extent_at(store, i);
        uint16_t *is = mark(store, extent);
        uint16_t kind = *is & EXTENT_LARGE ? *is & (EXTENT_LARGE | EXTENT_TORN) : 0;
        *is = kind | count_states(store, extent);
    }
    struct extents_seen seen = extents_count(store);
    store->head->huge_extents = seen.huge;
    store->head->spare_frames = seen.spare;
    store->head->torn_spare_frames = seen.torn_spare;
}
