#include "store/slots.h"

#include <errno.h>
#include <unistd.h>

#include "base/pages.h"
#include "os/files.h"
#include "os/forks.h"
#include "os/lease.h"
#include "os/map.h"
#include "store/files.h"
#include "store/layout.h"
#include "store/store.h"

uint64_t counts_bytes(const struct store *store)
{
    return frame_limit(store) * sizeof(uint32_t);
}

uint64_t counts_offset(const struct store *store, unsigned slot)
{
    return store_layout_of((unsigned)store->nodes, store->span_shift).counts +
           slot * counts_bytes(store);
}

static bool looks_held(const struct store *store, unsigned slot)
{
    return os_lease_held(store->lock_fd, 1 + slot);
}

/*
 * In another file, which may have got the number just before, nobody holds a lock.  So that it is ours is
 * asked after the answer that nobody does.
 */
bool slot_is_held(const struct store *store, unsigned slot)
{
    return looks_held(store, slot) || !store_has_lock_file(store);
}

/* Sets a mark to a value if that is higher, while other processes may do the same. */
static void raise_to(_Atomic uint32_t *mark, uint32_t value)
{
    uint32_t old = atomic_load(mark);
    while (old < value && !atomic_compare_exchange_weak(mark, &old, value))
        ;
}

/*
 * The lock on a slot's byte is taken first, which decides between two that want the same slot.
 * Then the slot has to be free still: another process may have taken it and died since it was
 * looked at, and what that process held has to be reaped first.
 */
int slot_claim(struct store *store, enum slot_kind kind, unsigned *slot, void **lease)
{
    *lease = NULL;
    if (!store_has_files(store))
        return -EBADF;
    for (unsigned i = 0; i < MAX_SLOTS; i++) {
        if (atomic_load(&store->head->slots[i].kind) != SLOT_FREE)
            continue;
        int error = os_lease_take(store->lock_fd, 1 + i, lease);
        if (error == -EAGAIN)
            continue;
        if (error)
            return error;
        if (atomic_load(&store->head->slots[i].kind) != SLOT_FREE) {
            os_lease_drop(*lease);
            *lease = NULL;
            continue;
        }
        store->head->slots[i].pid = (uint32_t)getpid(); /* a child writes its own: slot_sign() */
        store->head->slots[i].pages = 0;
        store->head->slots[i].fork = store->head->forks;
        store->head->slots[i].kin = os_kin();
        raise_to(&store->head->slots_end, i + 1);
        atomic_store(&store->head->slots[i].kind, kind);
        *slot = i;
        return 0;
    }
    return -EUSERS;
}

void store_bequeath(const struct store *store)
{
    if (store->lease)
        os_do_fork(store->lease, PAGE_SIZE);
}

void store_disinherit(const struct store *store)
{
    if (store->lease)
        os_dont_fork(store->lease, PAGE_SIZE);
}

void slot_sign(const struct store *store)
{
    uint32_t pid = (uint32_t)getpid();
    if (!store_has_lock_file(store))
        return;
    os_put(store->lock_fd,
           offsetof(struct store_head, slots) + store->slot * sizeof(struct slot) +
               offsetof(struct slot, pid),
           &pid, sizeof pid);
}

#define COUNTS_AT_ONCE 4096 /* 16 KiB */

/*
 * All of them are read, as far as there are frames: to ask the file first where it has memory
 * (SEEK_DATA) would pass over a page that the kernel moves just then.
 */
int each_count(struct store *store, unsigned slot, visit_count *visit)
{
    uint32_t counts[COUNTS_AT_ONCE];
    for (int node = 0; node < store->nodes; node++)
        for (uint64_t at = 0, n; at < store->ids[node].state->high; at += n) {
            uint32_t frame = first_frame(store, node) + (uint32_t)at;
            n = least(store->ids[node].state->high - at, COUNTS_AT_ONCE);
            int error =
                os_pread(store->lock_fd, counts_offset(store, slot) + frame * sizeof *counts,
                         counts, n * sizeof *counts);
            if (error < 0)
                return error;
            if (!store_has_lock_file(store))
                return -EBADF;
            for (uint32_t i = 0; i < n; i++)
                if (counts[i])
                    visit(store, frame + i, counts[i]);
        }
    return 0;
}

void clear_counts(const struct store *store, unsigned slot)
{
    if (store_has_lock_file(store))
        os_punch(store->lock_fd, counts_offset(store, slot), counts_bytes(store));
}

bool slots_are_held(const struct store *store)
{
    for (unsigned i = 0; i < MAX_SLOTS; i++)
        if (looks_held(store, i))
            return true;
    return !store_has_lock_file(store);
}

void slots_lose(struct store *store, uint32_t fork)
{
    raise_to(&store->head->lost, fork);
    store_bequeath(store);
}

/*
 * A child can have inherited a frame if it was forked after the frame was born and, should the
 * frame be stale now, before its last sharer left.  A frame with sharers may have been stale in
 * between, which it does not remember: then it counts as inherited by every child since its birth.
 */
bool store_leased(const struct store *store, const struct frame *frame)
{
    const struct store_head *head = store->head;
    uint32_t until = frame->sharers ? head->forks : frame->left;
    if (frame->pins || frame->born < head->lost)
        return true;
    for (unsigned i = 0; i < head->slots_end; i++) {
        const struct slot *slot = &head->slots[i];
        if (slot->kind == SLOT_CHILD && slot->fork > frame->born && slot->fork <= until)
            return true;
    }
    return false;
}
