#include "store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIN_SPAN_SHIFT 16
#define MAX_SPAN_SHIFT 30

/* Enough frames for all memory there is, on each node; the trees' indices have 31 bits. */
static unsigned choose_span(int nodes)
{
    unsigned shift = MIN_SPAN_SHIFT, node_bits = 0;
    while ((1 << node_bits) < nodes)
        node_bits++;
    while (shift < MAX_SPAN_SHIFT - node_bits && ((uint64_t)1 << shift) < os_memory_pages())
        shift++;
    return shift;
}

static uint64_t all_frames(const struct store *store)
{
    return (uint64_t)store->nodes << store->span_shift;
}

/* A node whose memory cannot be asked for is no error: the frames are only placed less well. */
static void place(struct store *store, const int *node_ids)
{
    size_t span = bytes_of((uint64_t)1 << store->span_shift);
    for (int node = 0; node_ids && store->nodes > 1 && node < store->nodes; node++)
        os_bind(store->memory + span * (size_t)node, span, node_ids[node]);
}

static int open_files(struct store *store)
{
    store->write_fd = os_memfd("ksmpy", bytes_of(all_frames(store)));
    if (store->write_fd < 0)
        return store->write_fd;
    store->lease_fd = os_memfd("ksmpy-lease", PAGE_SIZE);
    if (store->lease_fd < 0)
        return store->lease_fd;
    store->memory = os_map_shared(store->write_fd, bytes_of(all_frames(store)));
    if (!store->memory)
        return -ENOMEM;
    int error = os_dont_fork(store->memory, bytes_of(all_frames(store)));
    if (error)
        return error;
    store->memfd = os_seal(store->write_fd);
    return store->memfd < 0 ? store->memfd : os_identify(store->memfd, &store->inode, &store->dev);
}

static int open_records(struct store *store)
{
    uint64_t span = (uint64_t)1 << store->span_shift;
    store->frames = os_reserve(sizeof(struct frame) * all_frames(store));
    if (!store->frames)
        return -ENOMEM;
    int error = arena_init(&store->dead, sizeof(uint32_t), all_frames(store));
    for (int node = 0; node < store->nodes && !error; node++) {
        store->records[node] =
            (struct arena){.base = (uint8_t *)(store->frames + span * (uint64_t)node),
                           .stride = sizeof(struct frame),
                           .limit = span};
        error = ids_init(&store->ids[node], span);
    }
    return error;
}

int store_init(struct store *store, int nodes, const int *node_ids)
{
    memset(store, 0, sizeof *store);
    store->memfd = store->write_fd = store->lease_fd = -1;
    store->nodes = nodes;
    store->span_shift = choose_span(nodes);
    int error = open_files(store);
    if (!error)
        error = open_records(store);
    if (error)
        store_destroy(store);
    else
        place(store, node_ids);
    return error;
}

void store_destroy(struct store *store)
{
    os_unmap(store->memory, bytes_of(all_frames(store)));
    os_unmap(store->frames, sizeof(struct frame) * all_frames(store));
    for (int node = 0; node < store->nodes; node++)
        ids_destroy(&store->ids[node]);
    arena_destroy(&store->dead);
    store_close_files(store);
    store->memory = NULL;
    store->frames = NULL;
}

void store_close_files(struct store *store)
{
    int *files[] = {&store->memfd, &store->write_fd, &store->lease_fd};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        if (*files[i] >= 0)
            close(*files[i]);
        *files[i] = -1;
    }
}

/* ---- frames ---- */

uint32_t store_take(struct store *store, int node, uint64_t *n)
{
    uint32_t local = ids_take(&store->ids[node], n);
    if (local == NO_INDEX)
        return NO_FRAME;
    uint32_t first = local + ((uint32_t)node << store->span_shift);
    if (arena_grow(&store->records[node], local + *n) < 0) {
        ids_give(&store->ids[node], local, *n);
        return NO_FRAME;
    }
    for (uint64_t i = 0; i < *n; i++)
        *frame_at(store, first + (uint32_t)i) =
            (struct frame){.dup_next = NO_FRAME, .dup_prev = NO_FRAME, .born = store->leases.forks};
    return first;
}

/* Writing is a third cheaper than mapping fresh pages and copying: they are not cleared first. */
int64_t store_fill(struct store *store, uint32_t first, const void *pages, uint64_t n)
{
    return os_write(store->write_fd, bytes_of(first), pages, n);
}

/*
 * A list that cannot grow costs a frame until the store is closed, which is better than an error
 * here.
 */
void store_free(struct store *store, uint32_t frame)
{
    if (arena_grow(&store->dead, store->dead_count + 1) == 0)
        *(uint32_t *)arena_at(&store->dead, store->dead_count++) = frame;
}

static int by_index(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void punch(struct store *store, uint32_t first, uint64_t n)
{
    uint32_t mask = ((uint32_t)1 << store->span_shift) - 1;
    if (os_punch(frame_bytes(store, first), n) == 0)
        ids_give(&store->ids[frame_node(store, first)], first & mask, n);
    else
        for (uint64_t i = 0; i < n; i++) /* tried again at the next flush */
            store_free(store, first + (uint32_t)i);
}

void store_flush(struct store *store)
{
    uint64_t count = store->dead_count;
    uint32_t *dead = (uint32_t *)(void *)store->dead.base;
    if (!count || !store->memory) /* a forked child has no part in the store's memory */
        return;
    qsort(dead, count, sizeof *dead, by_index);
    store->dead_count = 0; /* punch() may put some back, never more than were read */
    for (uint64_t i = 0, end; i < count; i = end) {
        uint32_t first = dead[i];
        for (end = i + 1; end < count && dead[end] == first + (end - i); end++)
            if (frame_node(store, dead[end]) != frame_node(store, first))
                break;
        punch(store, first, end - i);
    }
}

uint64_t store_bytes(const struct store *store)
{
    uint64_t frames = 0;
    for (int node = 0; node < store->nodes; node++)
        frames += store->ids[node].used;
    return bytes_of(frames);
}

uint64_t store_metadata_bytes(const struct store *store)
{
    uint64_t bytes = store->dead.committed * store->dead.stride;
    for (int node = 0; node < store->nodes; node++)
        bytes += store->records[node].committed * sizeof(struct frame) +
                 store->ids[node].words.committed * sizeof(uint64_t);
    return bytes;
}

/* ---- leases ---- */

void store_update_leases(struct store *store)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < store->leases.count; i++)
        if (os_lease_held(store->lease_fd, store->leases.held[i]))
            store->leases.held[kept++] = store->leases.held[i];
    store->leases.count = kept;
}

/* A stale frame cannot have come to children forked after its last sharer left. */
bool store_leased(const struct store *store, const struct frame *frame)
{
    uint32_t until = frame->sharers ? store->leases.forks : frame->left;
    if (frame->pinned || frame->born < store->leases.lost)
        return true;
    for (uint32_t i = 0; i < store->leases.count; i++)
        if (store->leases.held[i] > frame->born && store->leases.held[i] <= until)
            return true;
    return false;
}

void store_lease_prepare(struct store *store)
{
    store->leases.taking = NULL;
    if (!store_bytes(store))
        return; /* the child inherits no frame */
    if (store->leases.count == MAX_LEASES)
        store_update_leases(store);
    uint32_t number = ++store->leases.forks;
    if (store->leases.count < MAX_LEASES)
        store->leases.taking = os_lease_take(store->lease_fd, number);
    if (store->leases.taking)
        store->leases.held[store->leases.count++] = number;
    else
        store->leases.lost = number;
}

void store_lease_parent(struct store *store)
{
    os_lease_drop(store->leases.taking);
    store->leases.taking = NULL;
}
