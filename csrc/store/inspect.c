/*
 * A shared store as it looks from outside: for who has a descriptor of it and no
 * engine on it.  With the attach lock, so that it is not laid out anew meanwhile.
 */
#include "store/inspect.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "ksmpy.h"
#include "os/folios.h"
#include "os/forks.h"
#include "store/attach.h"
#include "store/extents.h"
#include "store/files.h"
#include "store/frames.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/mapping.h"
#include "store/patience.h"
#include "store/pool.h"
#include "store/rules.h"
#include "store/slots.h"
#include "store/store.h"

typedef int look_at(struct store *store, const struct store_shape *shape, int error, void *out);

/*
 * Calls back with the attach lock held, and with what store_read_shape() has said; the store is not
 * mapped yet.  Forks wait while it is called, but not while the attach lock is waited for.
 */
static int look(int fd, bool exclusive, look_at *at, void *out)
{
    struct store store;
    struct store_shape shape;
    struct patience patience = {0};
    int error = store_open(&store, fd);
    if (!error)
        do {
            fork_hold();
            int lock = attach_lock(store.lock_fd, exclusive);
            error =
                lock < 0 ? lock : at(&store, &shape, store_read_shape(store.lock_fd, &shape), out);
            if (lock >= 0)
                close(lock);
            fork_let_go();
        } while (try_again(&patience, &error));
    store_close_files(&store);
    return error;
}

static void tell_rules(const uint64_t *knobs, struct ksmpy_store_stats *out)
{
    out->merge_across_nodes = knobs[KSMPY_KNOB_MERGE_ACROSS_NODES];
    out->max_page_sharing = knobs[KSMPY_KNOB_MAX_PAGE_SHARING];
    out->use_zero_pages = knobs[KSMPY_KNOB_USE_ZERO_PAGES];
}

static void fill_stats(const struct store *store, struct ksmpy_store_stats *out)
{
    const struct store_head *head = store->head;
    *out = (struct ksmpy_store_stats){
        .pages_shared = head->shared_frames,
        .pages_sharing = head->shared_pages - head->shared_frames,
        .stale_frames = head->stale_frames,
        .huge_frames = huge_frames(store),
        .spare_frames = head->spare_frames,
        .stable_node_chains = head->chains,
        .stable_node_dups = head->dups,
        .frame_bytes = store_bytes(store),
        .metadata_bytes = store_metadata_bytes(store),
        .deaths = head->deaths,
        .rebuilds = head->rebuilds,
        .lock_waits = head->lock_waits,
        .lock_wait_ns = head->lock_wait_ns,
        .lock_hold_max_ns = head->lock_hold_max_ns,
        .full = atomic_load(&head->full),
    };
    tell_rules(head->knobs, out);
}

static int stats_of(struct store *store, const struct store_shape *shape, int error, void *out)
{
    if (error == -ENODATA) {
        uint64_t rules[STORE_KNOBS];
        store_default_rules(rules);
        memset(out, 0, sizeof(struct ksmpy_store_stats));
        tell_rules(rules, out);
        return 0;
    }
    if (!error)
        error = store_map(store, shape);
    if (error)
        return error;
    store->large_folios = os_file_gets_large_folios(store->write_fd);
    error = store_lock_soundly(store);
    if (!error) {
        fill_stats(store, out);
        store_flush(store); /* a rebuild may have freed frames, and only we know of these */
        store_unlock(store);
    }
    store_unmap(store);
    return error;
}

int inspect_stats(int fd, struct ksmpy_store_stats *out)
{
    return look(fd, false, stats_of, out);
}

struct listing {
    struct ksmpy_store_process *list;
    int64_t max, count;
};

static int list(struct store *store, const struct store_shape *shape, int error, void *out)
{
    struct listing *listing = out;
    if (!error)
        error = store_map(store, shape);
    if (error)
        return error == -ENODATA ? 0 : error;
    for (unsigned i = 0; i < MAX_SLOTS; i++) {
        struct slot *slot = &store->head->slots[i];
        uint32_t kind = atomic_load(&slot->kind);
        if (kind == SLOT_FREE || !slot_is_held(store, i))
            continue;
        if (listing->count++ < listing->max)
            listing->list[listing->count - 1] =
                (struct ksmpy_store_process){slot->pid, kind == SLOT_CHILD, slot->pages};
    }
    store_unmap(store);
    return 0;
}

int64_t inspect_processes(int fd, struct ksmpy_store_process *out, int64_t max)
{
    struct listing listing = {out, max, 0};
    int error = look(fd, false, list, &listing);
    return error ? error : listing.count;
}

static int retire(struct store *store, const struct store_shape *shape, int error, void *out)
{
    (void)shape;
    (void)out;
    if (error == -ESTALE)
        return 0;
    return slots_are_held(store) ? -EBUSY : store_retire(store);
}

int inspect_retire(int fd)
{
    return look(fd, true, retire, NULL);
}
