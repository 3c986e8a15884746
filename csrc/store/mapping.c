#include "store/mapping.h"

#include <errno.h>
#include <unistd.h>

#include "base/checksum.h"
#include "base/rbtree.h"
#include "os/arena.h"
#include "os/map.h"
#include "store/files.h"
#include "store/layout.h"
#include "store/slots.h"
#include "store/store.h"
#include "store/view.h"

void store_unmap(struct store *store)
{
    struct store_layout at = store_layout_of((unsigned)store->nodes, store->span_shift);
    os_unmap(store->index, at.counts);
    os_unmap((void *)(uintptr_t)store->memory, at.end - at.frames);
    os_unmap(store->counts[0].base, counts_bytes(store));
    arena_destroy(&store->dead);
    store->dead_count = 0; /* other processes reap the frames that were not punched */
    store->index = NULL;
    store->memory = NULL;
    store->counts[0].base = NULL;
    store->head = NULL;
}

static void *map(int fd, uint64_t offset, uint64_t bytes, bool writable)
{
    void *address = os_map_shared(fd, offset, bytes, writable);
    if (address && os_dont_fork(address, bytes) < 0) {
        os_unmap(address, bytes);
        return NULL;
    }
    os_dont_dump(address, bytes); /* a core dump would read all of it, and so fill the file */
    return address;
}

static void place_arrays(struct store *store, const struct store_layout *at)
{
    uint8_t *base = store->index;
    uint64_t words = ids_words(at->span), frames = frame_limit(store);
    uint64_t inode = store->inode;
    int fd = store->write_fd;
    store->head = store->index;
    store->frames = (struct frame *)(void *)(base + at->records);
    arena_in_file(&store->announcements, sizeof(uint64_t), at->announced_size,
                  base + at->announcements, fd, inode, at->announcements);
    arena_in_file(&store->events, sizeof(uint64_t), STORE_EVENTS, base + at->events, fd, inode,
                  at->events);
    for (int node = 0; node < store->nodes; node++) {
        uint64_t i = (uint64_t)node;
        uint64_t ids = at->ids + i * at->ids_stride;
        uint64_t trees = at->trees + i * at->trees_stride;
        uint64_t records = at->records + i * at->span * sizeof(struct frame);
        store->ids[i].limit = at->span;
        store->ids[i].records = &store->records[i];
        store->ids[i].state = &store->head->node[i].ids;
        arena_in_file(&store->ids[i].words, sizeof(uint64_t), words, base + ids, fd, inode, ids);
        store->stable[i].state = &store->head->node[i].stable;
        arena_in_file(&store->stable[i].roots, sizeof(struct rb_tree), frames, base + trees, fd,
                      inode, trees);
        arena_in_file(&store->records[i], sizeof(struct frame), at->span, base + records, fd, inode,
                      records);
    }
}

int store_map(struct store *store, const struct store_shape *shape)
{
    struct store_layout at = store_layout_of(shape->nodes, shape->span_shift);
    store->nodes = (int)shape->nodes;
    store->span_shift = shape->span_shift;
    store->offset = at.frames;
    store->pid = (uint32_t)getpid();
    store->index = map(store->write_fd, 0, at.counts, true);
    store->memory = os_map_hidden(store->memfd, at.frames, at.end - at.frames);
    if (!store->index || !store->memory || store_begin_to_show(store) < 0 ||
        arena_init(&store->dead, sizeof(uint32_t), frame_limit(store)) < 0) {
        store_unmap(store);
        return -ENOMEM;
    }
    if (!store_has_files(store)) {
        store_unmap(store);
        return -EBADF; /* what is mapped may be another file */
    }
    place_arrays(store, &at);
    checksum_make_key(&store->key, store->head->key);
    return 0;
}

int store_map_counts(struct store *store, unsigned slot)
{
    uint64_t offset = counts_offset(store, slot);
    uint64_t span = (uint64_t)1 << store->span_shift;
    uint8_t *base = map(store->write_fd, offset, counts_bytes(store), true);
    if (!base)
        return -ENOMEM;
    if (!store_has_write_file(store)) {
        os_unmap(base, counts_bytes(store));
        return -EBADF;
    }
    for (int node = 0; node < store->nodes; node++) {
        uint64_t at = (uint64_t)node * span * sizeof(uint32_t);
        arena_in_file(&store->counts[node], sizeof(uint32_t), span, base + at, store->write_fd,
                      store->inode, offset + at);
    }
    return 0;
}
