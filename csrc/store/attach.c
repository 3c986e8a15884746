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
#include "store/attach.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/pages.h"
#include "os/arena.h"
#include "os/files.h"
#include "os/folios.h"
#include "os/forks.h"
#include "os/lease.h"
#include "os/map.h"
#include "store/board.h"
#include "store/check.h"
#include "store/debts.h"
#include "store/files.h"
#include "store/frames.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/mapping.h"
#include "store/private.h"
#include "store/reap.h"
#include "store/room.h"
#include "store/rules.h"
#include "store/slots.h"
#include "store/stable.h"
#include "store/store.h"
#include "store/view.h"

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

/*
 * Allocates the file's memory for all that the index says is in use.  It should have memory, but a
 * damaged file may say more than there is, and to touch that would be SIGBUS.
 */
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
        error = ids_allocate(&store->ids[node]);
        if (!error)
            error = arena_grow(&store->stable[node].roots, trees);
    }
    return error;
}

/* ---- laying out ---- */

static int set_size(const struct store *store, uint64_t bytes)
{
    return store_has_write_file(store) ? os_set_size(store->write_fd, bytes) : -EBADF;
}

static int fill_head(struct store *store)
{
    int error = store_make_mutex(&store->head->mutex);
    store->head->pid_namespace = os_pid_namespace();
    store_new_key(store);
    for (int node = 0; node < store->nodes && !error; node++)
        error = forest_clear(&store->stable[node]);
    return error ? error : announcements_reset(store);
}

/*
 * Writes the magic last: if its maker dies before, the next process finds a store that is not laid
 * out.  The fence keeps the compiler from writing it earlier; a process's stores stay in the file
 * when it dies, in the order in which they were made.
 */
static void write_shape(struct store *store, struct store_shape shape)
{
    shape.magic = 0;
    store->head->shape = shape;
    atomic_signal_fence(memory_order_seq_cst);
    store->head->shape.magic = STORE_MAGIC;
}

/*
 * Lays out a store that nobody uses.  What was in the file goes, except for its rules (merge
 * across nodes and the like), which outlast those who set them.  The shape is written last.
 */
static int lay_out(struct store *store, int nodes)
{
    struct store_shape shape = store_shape_for(nodes);
    uint64_t rules[STORE_KNOBS];
    int fd = store->write_fd;
    if (os_pread(fd, offsetof(struct store_head, knobs), rules, sizeof rules) < 0 ||
        !rules_are_sound(rules))
        store_default_rules(rules);
    int error = set_size(store, 0);
    if (!error)
        error = set_size(store, shape.file_size);
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
        set_size(store, 0);
        return error;
    }
    write_shape(store, shape);
    return 0;
}

/* ---- coming and going ---- */

/*
 * A robust mutex knows its holder by the number of a thread.  In another pid namespace another thread
 * may have that number: if that one is killed while it tries the lock, the kernel takes it for the
 * holder, and gives the lock to the next one as well.
 */
static bool numbers_threads_otherwise(const struct store *store)
{
    uint64_t theirs = store->head->pid_namespace, ours = os_pid_namespace();
    return theirs && ours && theirs != ours;
}

static int join_in(struct store *store, const struct store_shape *shape, int nodes)
{
    if ((int)shape->nodes != nodes)
        return -EXDEV;
    int error = store_map(store, shape);
    if (error)
        return error;
    if (numbers_threads_otherwise(store)) {
        store_unmap(store);
        return -EREMOTE;
    }
    error = rules_are_sound(store->head->knobs) ? store_lock_soundly(store) : -EUCLEAN;
    if (!error) {
        error = allocate_used(store);
        if (!error)
            error = store_check(store);
        store_flush(store); /* a rebuild may have freed frames, and only we know of these */
        store_unlock(store);
    }
    if (error)
        store_unmap(store);
    return error;
}

/* Allocates memory to count this process's sharers of any frame that there is. */
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
    store_flush(store); /* now: without a slot we own no frames, and nobody else knows of these */
    void *lease;
    unsigned slot;
    int error = slot_claim(store, SLOT_ENGINE, &slot, &lease);
    store_unlock(store);
    if (error)
        return error;
    error = os_dont_fork(lease, PAGE_SIZE);
    if (!error)
        error = store_map_counts(store, slot);
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

static int enter(struct store *store, int nodes)
{
    struct store_shape shape;
    bool used = slots_are_held(store);
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
    store->large_folios = !error && os_file_gets_large_folios(store->write_fd);
    if (!error)
        error = enter_locked(store, nodes);
    if (error)
        store_close_files(store);
    else
        store_place(store, node_ids);
    return error;
}

#define LEAVE_TRIES 50 /* times LOCK_TRY_MS; longer than others try, as we hold nobody up */

/*
 * Gives this process's slot up.  If the lock is not to be had, or not all debts could be paid, only
 * the lease is dropped: the slot then looks like a dead process's, and others reap it.  A process
 * with pinned frames keeps its lease until it ends, since it may still map these frames.
 */
static void leave_store(struct store *store, int tries)
{
    bool locked = false;
    for (; !locked && tries; tries--) {
        store->away = false;
        locked = store_lock(store);
    }
    if (locked) {
        store_unlock(store);
        store_flush(store); /* once the slot is free nobody would know of these frames */
    }
    bool leaves = !store->pinned && store_has_files(store);
    if (leaves && locked && !store->bankrupt && !store->dead_count && !store->away) {
        /*
         * This needs no lock: every count is 0 by now, and nobody takes the slot before it is free.
         */
        clear_counts(store, store->slot);
        atomic_store(&store->head->slots[store->slot].kind, SLOT_FREE);
    }
    if (leaves)
        os_lease_drop(store->lease);
    store_forgive(store);
}

int store_attach_again(struct store *store)
{
    void *gift = store->lease;
    if (!store_has_files(store))
        return -EBADF;
    store->lease = NULL;
    /*
     * The number of a slot that is not this process's any more, or never was, may be that of a dead one's,
     * who is buried before a slot is taken: what is freed then would look like that one's, and be freed
     * again.
     */
    store->slot = NO_SLOT;
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
        store_reap(store); /* this may be the last process on the store */
        leave_store(store, LEAVE_TRIES);
        store_unmap(store);
    }
    store_close_files(store);
}

void store_destroy(struct store *store)
{
    if (store->shared)
        store_detach(store);
    else
        private_close(store);
}

/* Makes a file that nobody uses one that nobody can attach to, whatever was in it. */
int store_retire(struct store *store)
{
    const uint64_t retired[PAGE_SIZE / sizeof(uint64_t)] = {STORE_RETIRED};
    int error = set_size(store, 0);
    if (error)
        return error;
    int64_t written = os_write(store->write_fd, 0, retired, 1);
    return written < 0 ? (int)written : 0;
}
