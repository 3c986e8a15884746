/*
 * Shared stores: one file that engines of several processes attach to.
 *
 *   | head | ids | trees | records | announcements | events | counts of slot 0, 1, ... | frames |
 *   '--------- mapped by all, for writing -----------------' '-- each its own, so ---' '- read -'
 *
 * The file is sparse, and as long as it can ever become; whatever will be
 * touched through a mapping is allocated first, since a full file system would
 * answer a touch with SIGBUS.  Frames are written with pwrite() and mapped for
 * reading only, so that nobody can write into one by accident.
 *
 * A lock on the file's first byte, the attach lock, is held by whoever comes or
 * removes the store, and for reading by whoever only looks.  When nobody has a
 * slot, what is in the file is of no use to anyone: the next one lays it out
 * anew.  Otherwise the newcomer holds all of it against its own rules first,
 * and refuses what does not fit: 32-bit indices out of a damaged file would
 * lead anywhere.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/checksum.h"
#include "base/pages.h"
#include "base/rbtree.h"
#include "engine/knobs.h"
#include "os/arena.h"
#include "os/files.h"
#include "os/lease.h"
#include "os/map.h"
#include "store/store.h"

#define ATTACH_BYTE 0

/* ---- the attach lock ---- */

int attach_lock(int fd, bool exclusive)
{
    int lock = os_reopen(fd, O_RDWR);
    if (lock < 0 || os_try_lock(lock, ATTACH_BYTE, exclusive) == 0)
        return lock;
    close(lock);
    return -EAGAIN;
}

uint32_t store_holder(int fd)
{
    uint64_t magic;
    uint32_t holder;
    if (os_pread(fd, 0, &magic, sizeof magic) < 0 || magic != STORE_MAGIC ||
        os_pread(fd, offsetof(struct store_head, holder), &holder, sizeof holder) < 0)
        return 0;
    return holder;
}

bool store_is_used(const struct store *store)
{
    for (unsigned i = 0; i < MAX_SLOTS; i++)
        if (slot_is_held(store, i))
            return true;
    return false;
}

/* ---- mapping ---- */

void store_unmap(struct store *store)
{
    struct store_layout at = store_layout_of((unsigned)store->nodes, store->span_shift);
    os_unmap(store->index, at.counts);
    os_unmap((void *)(uintptr_t)store->memory, at.end - at.frames);
    os_unmap(store->counts[0].base, counts_bytes(store));
    arena_destroy(&store->dead);
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
    os_dont_dump(address, bytes); /* a dump reads all of it, and so fills the file */
    return address;
}

static void place_arrays(struct store *store, const struct store_layout *at)
{
    uint8_t *base = store->index;
    uint64_t words = ids_words(at->span), frames = frame_limit(store);
    int fd = store->write_fd;
    store->head = store->index;
    store->frames = (struct frame *)(void *)(base + at->records);
    arena_in_file(&store->announcements, sizeof(uint64_t), at->announced_size,
                  base + at->announcements, fd, at->announcements);
    arena_in_file(&store->events, sizeof(uint64_t), STORE_EVENTS, base + at->events, fd,
                  at->events);
    for (int node = 0; node < store->nodes; node++) {
        uint64_t i = (uint64_t)node;
        uint64_t ids = at->ids + i * at->ids_stride;
        uint64_t trees = at->trees + i * at->trees_stride;
        uint64_t records = at->records + i * at->span * sizeof(struct frame);
        store->ids[i].limit = at->span;
        store->ids[i].state = &store->head->node[i].ids;
        arena_in_file(&store->ids[i].words, sizeof(uint64_t), words, base + ids, fd, ids);
        store->stable[i].state = &store->head->node[i].stable;
        arena_in_file(&store->stable[i].roots, sizeof(struct rb_tree), frames, base + trees, fd,
                      trees);
        arena_in_file(&store->records[i], sizeof(struct frame), at->span, base + records, fd,
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
    place_arrays(store, &at);
    checksum_make_key(&store->key, store->head->key);
    return 0;
}

/* Whatever is in use already is known to have memory. */
static int allocate_used(struct store *store)
{
    int error = 0;
    for (int node = 0; node < store->nodes && !error; node++) {
        uint64_t high = store->ids[node].state->high;
        uint64_t trees = store->stable[node].state->trees;
        if (high > store->ids[node].limit || trees > frame_limit(store))
            return -EUCLEAN;
        if (store->head->node[node].counted > store->ids[node].limit)
            return -EUCLEAN;
        error = arena_grow(&store->ids[node].words, ids_words(high));
        if (!error)
            error = arena_grow(&store->stable[node].roots, trees);
        if (!error)
            error = arena_grow(&store->records[node], high);
    }
    return error;
}

/* ---- laying out ---- */

static int fill_head(struct store *store)
{
    int error = store_make_mutex(&store->head->mutex);
    store_new_key(store);
    for (int node = 0; node < store->nodes && !error; node++)
        error = forest_clear(&store->stable[node]);
    return error ? error : announcements_reset(store);
}

static bool rules_are_sound(const uint64_t *knobs)
{
    for (int knob = 0; knob < STORE_KNOBS; knob++)
        if (knob_check(knob, knobs[knob]) < 0)
            return false;
    return true;
}

/* The magic comes last: its maker may die in between. */
static void write_shape(struct store *store, struct store_shape shape)
{
    shape.magic = 0;
    store->head->shape = shape;
    atomic_signal_fence(memory_order_seq_cst);
    store->head->shape.magic = STORE_MAGIC;
}

/* Nobody uses it; what was there is gone, but for its rules. The shape is written last. */
static int lay_out(struct store *store, int nodes)
{
    struct store_shape shape = store_shape_for(nodes);
    uint64_t rules[STORE_KNOBS];
    int fd = store->write_fd;
    if (os_pread(fd, offsetof(struct store_head, knobs), rules, sizeof rules) < 0 ||
        !rules_are_sound(rules))
        store_default_rules(rules);
    int error = os_set_size(fd, 0);
    if (!error)
        error = os_set_size(fd, shape.file_size);
    if (!error)
        error = os_allocate(fd, 0, sizeof(struct store_head));
    if (!error)
        error = store_map(store, &shape);
    if (!error) {
        memcpy(store->head->knobs, rules, sizeof rules);
        error = fill_head(store);
        if (error)
            store_unmap(store);
    }
    if (error) {
        os_set_size(fd, 0);
        return error;
    }
    write_shape(store, shape);
    return 0;
}

/* ---- coming and going ---- */

static int join_in(struct store *store, const struct store_shape *shape, int nodes)
{
    if ((int)shape->nodes != nodes)
        return -EXDEV;
    int error = store_map(store, shape);
    if (error)
        return error;
    error = rules_are_sound(store->head->knobs) ? store_lock_soundly(store) : -EUCLEAN;
    if (!error) {
        error = allocate_used(store);
        if (!error)
            error = store_check(store);
        store_flush(store); /* what a rebuild has freed: nobody's, once others have the lock */
        store_unlock(store);
    }
    if (error)
        store_unmap(store);
    return error;
}

static int own_counts(struct store *store, unsigned slot)
{
    uint64_t offset = counts_offset(store, slot);
    uint64_t span = (uint64_t)1 << store->span_shift;
    uint8_t *base = map(store->write_fd, offset, counts_bytes(store), true);
    if (!base)
        return -ENOMEM;
    for (int node = 0; node < store->nodes; node++) {
        uint64_t at = (uint64_t)node * span * sizeof(uint32_t);
        arena_in_file(&store->counts[node], sizeof(uint32_t), span, base + at, store->write_fd,
                      offset + at);
    }
    return 0;
}

/* So that the sharers of any frame there is can be counted. */
static int need_counts(struct store *store)
{
    int error = 0;
    for (int node = 0; node < store->nodes && !error; node++)
        error = arena_grow(&store->counts[node], store->ids[node].state->high);
    return error;
}

static int take_slot(struct store *store)
{
    if (!store_lock(store))
        return store_why_not(store);
    slots_reap(store);
    store_flush(store); /* no slot yet: these frames are nobody's, once others have the lock */
    void *lease;
    unsigned slot;
    int error = slot_claim(store, SLOT_ENGINE, &slot, &lease); /* a rebuild asks whose they are */
    store_unlock(store);
    if (error)
        return error;
    error = os_dont_fork(lease, PAGE_SIZE);
    if (!error)
        error = own_counts(store, slot);
    if (!error)
        store_count_for(store, slot);
    if (error) {
        atomic_store(&store->head->slots[slot].kind, SLOT_FREE);
        os_lease_drop(lease);
        return error;
    }
    os_lease_drop(store->lease);
    store->lease = lease;
    store->slot = slot;
    return 0;
}

int store_open(struct store *store, int fd)
{
    memset(store, 0, sizeof *store);
    store_forget_files(store);
    store->shared = true;
    store->slot = NO_SLOT;
    store->lock_fd = os_reopen(fd, O_RDWR);
    if (store->lock_fd < 0)
        return store->lock_fd;
    store->write_fd = os_reopen(fd, O_RDWR);
    if (store->write_fd < 0)
        return store->write_fd;
    store->memfd = os_reopen(fd, O_RDONLY);
    return store->memfd < 0 ? store->memfd : store_know_files(store);
}

static int enter(struct store *store, int nodes)
{
    struct store_shape shape;
    bool used = store_is_used(store);
    int error = store_read_shape(store->lock_fd, &shape);
    if (error && (error != -ENODATA || used))
        return error == -ENODATA ? -EUCLEAN : error;
    error = used ? join_in(store, &shape, nodes) : lay_out(store, nodes);
    if (error)
        return error;
    error = take_slot(store);
    if (error)
        store_unmap(store);
    return error;
}

static int enter_locked(struct store *store, int nodes)
{
    int lock = attach_lock(store->lock_fd, true);
    if (lock < 0)
        return lock;
    int error = enter(store, nodes);
    close(lock);
    return error;
}

int store_attach(struct store *store, int fd, int nodes, const int *node_ids)
{
    int error = store_open(store, fd);
    if (!error)
        error = enter_locked(store, nodes);
    if (error)
        store_close_files(store);
    else
        store_place(store, node_ids);
    return error;
}

#define LEAVE_TRIES 50 /* times LOCK_TRY_MS: nobody waits for who is about to be gone */

/*
 * Where the lock is not to be had, or not all that was owed could be paid, it leaves as the dead
 * do, and is reaped as they are.  Frames whose mappings went out of sight are kept for as long as
 * the process lives.
 */
static void leave_store(struct store *store, int tries)
{
    bool locked = false;
    for (; !locked && tries; tries--) {
        store->away = false;
        locked = store_lock(store);
    }
    bool leaves = !store->pinned && store_has_files(store);
    if (locked) {
        store_flush(store); /* nobody knows of these frames once the slot is free */
        if (leaves && !store->bankrupt) {
            os_punch(store->lock_fd, counts_offset(store, store->slot), counts_bytes(store));
            atomic_store(&store->head->slots[store->slot].kind, SLOT_FREE);
        }
    }
    if (leaves)
        os_lease_drop(store->lease);
    if (locked)
        store_unlock(store);
    store_forgive(store);
}

int store_attach_again(struct store *store)
{
    void *gift = store->lease;
    if (!store_has_files(store))
        return -EBADF;
    store->lease = NULL;
    int error = enter_locked(store, store->nodes);
    store->gift = gift;
    if (error) {
        store->lease = gift;
        store->gift = NULL;
        return error;
    }
    error = need_counts(store);
    if (error)
        store_return_to_parent(store);
    return error;
}

void store_return_to_parent(struct store *store)
{
    leave_store(store, 1);
    store_unmap(store);
    store->lease = store->gift;
    store->gift = NULL;
}

void store_part_from_parent(struct store *store)
{
    os_lease_drop(store->gift);
    store->gift = NULL;
}

void store_detach(struct store *store)
{
    if (store->index) {
        store_reap(store); /* perhaps nobody comes after us */
        leave_store(store, LEAVE_TRIES);
        store_unmap(store);
    }
    store_close_files(store);
}

/* Whatever was in it: nobody uses it. */
int store_retire(struct store *store)
{
    const uint64_t retired[PAGE_SIZE / sizeof(uint64_t)] = {STORE_RETIRED};
    int error = os_set_size(store->write_fd, 0);
    if (error)
        return error;
    int64_t written = os_write(store->write_fd, 0, retired, 1);
    return written < 0 ? (int)written : 0;
}
