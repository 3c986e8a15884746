/*
 * Who uses a store, and what becomes of the dead.
 *
 * A slot is held by a lock on its byte of the lock file, through a description
 * that only a mapping refers to; so it ends with the last process that has the
 * mapping, however that ends, and nobody needs to be told.  Whoever looks next
 * takes back what the dead one held:
 *
 *   SLOT_ENGINE  its sharers, as it counted them itself, the frames that it was
 *                filling or freeing, the pages that it waited with
 *   SLOT_CHILD   a forked child's: frames that were there at the fork stay, stale,
 *                until it is gone.  A child gets its slot before the fork.
 *
 * Who dies with the store's lock in his hand may leave any structure half
 * changed.  The next one makes all of it anew, from the frames that are live
 * and the counts of those who are alive: they are changed one word at a time.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/pages.h"
#include "ksmpy.h"
#include "os/arena.h"
#include "os/clock.h"
#include "os/files.h"
#include "os/lease.h"
#include "os/map.h"
#include "store/store.h"

#define TIMED 16 /* one in so many times is the lock's holding measured */

/* ---- the lock ---- */

/* What the last owner left half changed is made anew; by the next one where this one cannot. */
static int mend(struct store *store, bool owner_died)
{
    struct store_head *head = store->head;
    if (owner_died) {
        head->half_changed = true;
        pthread_mutex_consistent(&head->mutex);
    }
    int error = store_show(store);
    if (error || !head->half_changed)
        return error;
    error = store_rebuild(store);
    if (error)
        return error;
    head->half_changed = false;
    head->rebuilds++;
    return 0;
}

/* With what pthread_mutex_trylock() said. false: from now on nothing is done with the store. */
static bool locked(struct store *store, int error)
{
    if (error && error != EOWNERDEAD) { /* somebody wrote over it: nothing here can be believed */
        store->broken = -EUCLEAN;
        return false;
    }
    store->depth = 1;
    store->broken = mend(store, error == EOWNERDEAD);
    if (store->broken) {
        store->depth = 0;
        pthread_mutex_unlock(&store->head->mutex);
        return false;
    }
    store->head->holder = store->pid;
    if (store->locks++ % TIMED == 0)
        store->locked_at = os_now_ns();
    store_pay(store);
    return true;
}

#define YIELDS 64 /* most holders are done by then; after that whoever waits sleeps in between */
#define NAP_US 50

/* An error of pthread_mutex_trylock(); what it took goes to *waited. */
static int try_for(pthread_mutex_t *mutex, uint64_t limit_ns, uint64_t *waited)
{
    uint64_t begin = os_now_ns();
    int error = EBUSY;
    for (unsigned tries = 0; error == EBUSY && *waited < limit_ns; tries++) {
        if (tries < YIELDS)
            sched_yield();
        else
            os_sleep_us(NAP_US);
        error = pthread_mutex_trylock(mutex);
        *waited = os_now_ns() - begin;
    }
    return error;
}

bool store_lock(struct store *store)
{
    if (!store->shared || store->depth) {
        store->depth += store->shared;
        return true;
    }
    struct store_head *head = store->head;
    uint64_t waited = 0, limit = store->away ? 0 : LOCK_TRY_MS * 1000000;
    int error = store->broken ? EBUSY : pthread_mutex_trylock(&head->mutex);
    if (error == EBUSY && limit && !store->broken)
        error = try_for(&head->mutex, limit, &waited);
    store->away = error == EBUSY || !locked(store, error);
    if (store->away)
        return false;
    head->lock_waits += waited != 0;
    head->lock_wait_ns += waited;
    return true;
}

int store_lock_soundly(struct store *store)
{
    int error = pthread_mutex_trylock(&store->head->mutex);
    if (error == EBUSY)
        return -EAGAIN;
    return locked(store, error) ? 0 : store->broken;
}

#define STEP_NS 100000000 /* between two attempts; in more time it was stopped itself */

bool try_again(struct patience *patience, int *error)
{
    uint64_t now = os_now_ns();
    if (*error != -EAGAIN)
        return false;
    if (patience->last)
        patience->waited += least(now - patience->last, STEP_NS);
    patience->last = now;
    if (patience->waited > PATIENCE_MS * (uint64_t)1000000) {
        *error = -ETIMEDOUT;
        return false;
    }
    os_sleep_us(1000);
    return true;
}

void store_unlock(struct store *store)
{
    if (!store->shared || --store->depth)
        return;
    if (store->locked_at) {
        uint64_t held = os_now_ns() - store->locked_at;
        store->locked_at = 0;
        if (held > store->head->lock_hold_max_ns)
            store->head->lock_hold_max_ns = held;
    }
    store->head->holder = 0;
    pthread_mutex_unlock(&store->head->mutex);
}

/* ---- slots ---- */

bool slot_is_held(const struct store *store, unsigned slot)
{
    return os_lease_held(store->lock_fd, 1 + slot);
}

/* Others may do so at the same time. */
static void raise_to(_Atomic uint32_t *mark, uint32_t value)
{
    uint32_t old = atomic_load(mark);
    while (old < value && !atomic_compare_exchange_weak(mark, &old, value))
        ;
}

/*
 * The lock comes first, and decides between two that want the same slot.  Who had it meanwhile
 * may have died in it: then it is to be reaped.
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
        store->head->slots[i].pid = (uint32_t)getpid(); /* a child signs for itself */
        store->head->slots[i].pages = 0;
        store->head->slots[i].fork = store->head->forks;
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

void slot_sign(const struct store *store)
{
    uint32_t pid = (uint32_t)getpid();
    os_put(store->lock_fd,
           offsetof(struct store_head, slots) + store->slot * sizeof(struct slot) +
               offsetof(struct slot, pid),
           &pid, sizeof pid);
}

typedef void visit_count(struct store *store, uint32_t frame, uint32_t count);

/* The counts that a slot has in the file, without touching what was never written there. */
static void each_count(struct store *store, unsigned slot, visit_count *visit)
{
    uint32_t counts[PAGE_SIZE / sizeof(uint32_t)];
    uint64_t start = counts_offset(store, slot), end = start + counts_bytes(store);
    uint64_t at = start, stop;
    while (at < end && os_next_data(store->lock_fd, &at, &stop))
        for (; at < stop && at < end; at += PAGE_SIZE) {
            if (os_pread(store->lock_fd, at, counts, sizeof counts) < 0)
                return;
            uint32_t frame = (uint32_t)((at - start) / sizeof(uint32_t));
            for (size_t i = 0; i < PAGE_SIZE / sizeof(uint32_t); i++)
                if (counts[i])
                    visit(store, frame + (uint32_t)i, counts[i]);
        }
}

static void take_back(struct store *store, uint32_t frame, uint32_t count)
{
    struct frame *record = frame_at(store, frame);
    if (is_full(store, record))
        event_add_for_all(store, record->tree, record->sum);
    record->pins = (uint16_t)(record->pins - (count & PINNED ? 1 : 0));
    store_drop(store, frame, count & ~PINNED);
}

/*
 * What a dead process was filling or freeing.  It may have mapped a frame that it could not put
 * into the index any more, which a child may have inherited.
 */
static void take_over(struct store *store, uint32_t frame)
{
    struct frame *record = frame_at(store, frame);
    if (record->state == FRAME_FILLING && !record->sharers)
        record->left = store->head->forks;
    if (record->state == FRAME_DEAD || (!record->sharers && !store_leased(store, record))) {
        store_free(store, frame);
        return;
    }
    record->sum = store_sum(store, frame_bytes(store, frame));
    stable_add(store, frame,
               store->head->knobs[KSMPY_KNOB_MERGE_ACROSS_NODES] ? 0 : frame_node(store, frame));
    store->head->stale_frames += !record->sharers;
}

static void free_orphans(struct store *store, unsigned slot)
{
    for (int node = 0; node < store->nodes; node++)
        for (uint64_t i = 0; i < store->ids[node].state->high; i++) {
            uint32_t frame = (uint32_t)i + first_frame(store, node);
            const struct frame *record = frame_at(store, frame);
            bool half = record->state == FRAME_FILLING || record->state == FRAME_DEAD;
            if (half && record->owner == slot)
                take_over(store, frame);
        }
}

static void clear_counts(struct store *store, unsigned slot)
{
    os_punch(store->lock_fd, counts_offset(store, slot), counts_bytes(store));
}

static void reap(struct store *store, unsigned slot)
{
    struct slot *dead = &store->head->slots[slot];
    if (store->shared && dead->kind == SLOT_ENGINE) {
        each_count(store, slot, take_back);
        free_orphans(store, slot);
        announcements_forget_slot(store, slot);
        clear_counts(store, slot);
        store->head->deaths++;
    }
    atomic_store(&dead->kind, SLOT_FREE);
}

void slots_reap(struct store *store)
{
    if (!store_has_files(store))
        return; /* everybody would look dead */
    for (unsigned i = 0; i < MAX_SLOTS; i++) {
        if (atomic_load(&store->head->slots[i].kind) == SLOT_FREE || slot_is_held(store, i))
            continue;
        if (!store_lock(store))
            return;
        if (atomic_load(&store->head->slots[i].kind) != SLOT_FREE && !slot_is_held(store, i))
            reap(store, i);
        store_unlock(store);
    }
}

/* ---- making the index anew ---- */

static void count_sharers(struct store *store, uint32_t frame, uint32_t count)
{
    struct frame *record = frame_at(store, frame);
    store->head->shared_frames += !record->sharers && (count & ~PINNED);
    store->head->shared_pages += count & ~PINNED;
    record->sharers += count & ~PINNED;
    record->pins = (uint16_t)(record->pins + (count & PINNED ? 1 : 0));
}

/* Records may have been promised for which there was no memory any more. */
static void trust_records(struct store *store, int node)
{
    struct ids_state *state = store->ids[node].state;
    uint64_t start = store->records[node].offset, at = start, stop = start;
    if (!os_next_data(store->lock_fd, &at, &stop) || at != start)
        stop = start;
    uint64_t there = (stop - start) / sizeof(struct frame);
    there = there < store->ids[node].limit ? there : store->ids[node].limit;
    state->high = state->high < there ? state->high : there;
}

static void begin_anew(struct store *store)
{
    struct store_head *head = store->head;
    head->live_frames = head->shared_frames = head->shared_pages = head->stale_frames = 0;
    head->chains = head->dups = 0;
    for (int node = 0; node < store->nodes; node++) {
        trust_records(store, node);
        ids_clear(&store->ids[node]);
        forest_clear(&store->stable[node]);
        for (uint64_t i = 0; i < store->ids[node].state->high; i++) {
            struct frame *record = frame_at(store, (uint32_t)i + first_frame(store, node));
            record->sharers = record->pins = 0;
            record->dup_next = record->dup_prev = NO_FRAME;
        }
    }
    announcements_reset(store);
    events_reset(store);
}

static void bring_back(struct store *store, uint32_t frame)
{
    struct frame *record = frame_at(store, frame);
    if (record->state == FRAME_FREE)
        return;
    ids_mark(&store->ids[frame_node(store, frame)], frame_local(store, frame));
    if (record->state == FRAME_LIVE) {
        record->sum = store_sum(store, frame_bytes(store, frame));
        stable_add(store, frame, record->tree < store->nodes ? record->tree : 0);
        if (record->sharers == 0) { /* the next reaping decides; nobody knows since when */
            record->left = store->head->forks;
            store->head->stale_frames++;
        }
    } else if (record->owner >= MAX_SLOTS ||
               store->head->slots[record->owner].kind != SLOT_ENGINE) {
        take_over(store, frame);
    }
}

/*
 * Counts of the dead go first; then those of the living are all there are.  A
 * process that takes a frame, or dies, during this waits for the lock, or is
 * found by the next reaping.
 */
int store_rebuild(struct store *store)
{
    if (!store_has_files(store))
        return -EBADF; /* the program has closed them */
    begin_anew(store);
    for (unsigned i = 0; i < MAX_SLOTS; i++) {
        struct slot *slot = &store->head->slots[i];
        if (slot->kind != SLOT_FREE && !slot_is_held(store, i)) {
            clear_counts(store, i);
            store->head->deaths += slot->kind == SLOT_ENGINE;
            atomic_store(&slot->kind, SLOT_FREE);
        }
        if (slot->kind != SLOT_ENGINE)
            continue;
        uint64_t before = store->head->shared_pages;
        each_count(store, i, count_sharers);
        slot->pages = store->head->shared_pages - before;
    }
    for (int node = 0; node < store->nodes; node++)
        for (uint64_t i = 0; i < store->ids[node].state->high; i++)
            bring_back(store, (uint32_t)i + first_frame(store, node));
    store_look_away(store, true);
    return 0;
}

/* ---- fork ---- */

/*
 * A stale frame cannot have come to children forked after its last sharer left. One that is shared
 * again counts as theirs, too: it does not remember when it was stale.
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

/* What a rebuild under way in another process has no part in. */
static bool maps_frames(const struct store *store)
{
    return store->pinned ||
           (store->shared ? store->head->slots[store->slot].pages : store_bytes(store));
}

static void lose(struct store *store, uint32_t number)
{
    raise_to(&store->head->lost, number);
    store_bequeath(store);
}

/*
 * Without the lock, which another process may hold for long: a frame that the
 * child will map is one that we map, and nobody frees it before we have left it
 * and have seen our own slot.  A child for whom there is no slot holds ours:
 * what it maps must outlast us.
 */
void store_fork_prepare(struct store *store)
{
    struct store_head *head = store->head;
    store->taking = NULL;
    if (!head || !maps_frames(store))
        return; /* the child inherits no frame */
    uint32_t number = atomic_fetch_add(&head->forks, 1) + 1;
    if (slot_claim(store, SLOT_CHILD, &store->taking_slot, &store->taking) < 0) {
        slots_reap(store);
        if (slot_claim(store, SLOT_CHILD, &store->taking_slot, &store->taking) < 0)
            lose(store, number);
    }
    if (store->taking)
        head->slots[store->taking_slot].fork = number;
}

void store_fork_parent(struct store *store)
{
    os_lease_drop(store->taking);
    store->taking = NULL;
}
