#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checksum.h"
#include "base/pages.h"
#include "base/rbtree.h"
#include "ksmpy.h"
#include "os/arena.h"
#include "os/clock.h"
#include "os/files.h"
#include "os/lease.h"
#include "os/map.h"
#include "os/memory.h"
#include "os/numa.h"
#include "store/store.h"

#define MIN_SPAN_SHIFT 16
#define MAX_SPAN_SHIFT 30

/* Enough frames for all memory there is, on each node; the trees' indices have 31 bits. */
unsigned store_choose_span(int nodes)
{
    unsigned shift = MIN_SPAN_SHIFT, node_bits = 0;
    while ((1 << node_bits) < nodes)
        node_bits++;
    while (shift < MAX_SPAN_SHIFT - node_bits && ((uint64_t)1 << shift) < os_memory_pages())
        shift++;
    return shift;
}

/* 0: none. */
static _Atomic uint64_t fixed_key;

void ksmpy_fix_key(uint64_t seed)
{
    atomic_store(&fixed_key, seed);
}

void store_new_key(struct store *store)
{
    uint64_t fixed = atomic_load(&fixed_key);
    store->head->key = fixed ? fixed : os_random();
    checksum_make_key(&store->key, store->head->key);
}

void store_default_rules(uint64_t *knobs)
{
    knobs[KSMPY_KNOB_MERGE_ACROSS_NODES] = 1;
    knobs[KSMPY_KNOB_MAX_PAGE_SHARING] = 256;
    knobs[KSMPY_KNOB_USE_ZERO_PAGES] = 1;
}

void store_place(const struct store *store, const int *node_ids)
{
    size_t span = bytes_of((uint64_t)1 << store->span_shift);
    for (int node = 0; node_ids && store->nodes > 1 && node < store->nodes; node++)
        os_bind((uint8_t *)(uintptr_t)store->memory + span * (size_t)node, span, node_ids[node]);
}

/* ---- the part of its memory that can be read ---- */

#define SHOW_STEP ((uint64_t)1 << 8) /* frames: 1 MiB */

static int show(struct store *store, int node, uint64_t high)
{
    uint64_t known = store->readable[node], span = (uint64_t)1 << store->span_shift;
    uint64_t n = least(high + high / 16 + SHOW_STEP, span) - known;
    uintptr_t address = (uintptr_t)store->memory;
    int error = os_protect(address + bytes_of(first_frame(store, node) + known), n, false);
    if (!error)
        store->readable[node] = known + n;
    return error;
}

int store_begin_to_show(struct store *store)
{
    int error = 0;
    memset(store->readable, 0, sizeof store->readable);
    for (int node = 0; node < store->nodes && !error; node++)
        error = show(store, node, 0);
    return error;
}

#define SHOW_TRIES 2000

/* It grows, which takes no mapping and next to no memory: that is waited for. */
int store_show(struct store *store)
{
    int error = 0, tries = SHOW_TRIES;
    for (int node = 0; node < store->nodes && store->memory; node++) {
        uint64_t high = least(store->ids[node].state->high, (uint64_t)1 << store->span_shift);
        while (high > store->readable[node] && (error = show(store, node, high)) == -ENOMEM &&
               tries--)
            os_sleep_us(50);
        if (error)
            return error;
    }
    return 0;
}

#define LOOK_AWAY 256 /* pieces: 16 MiB */

/* The kernel may have mapped a whole huge page on either side. */
void store_look_away(struct store *store, bool at_once)
{
    struct frames_read *read = &store->read;
    if (!store->memory || !read->pieces || (!at_once && read->pieces < LOOK_AWAY))
        return;
    uint64_t first = read->first > HUGE_PAGES ? read->first - HUGE_PAGES : 0;
    uint64_t end = least(read->end + HUGE_PAGES, frame_limit(store));
    os_look_away((uintptr_t)store->memory + bytes_of(first), end - first);
    read->pieces = 0;
}

int store_know_files(struct store *store)
{
    int error = os_know_file(store->lock_fd, &store->lock_inode, &store->dev);
    if (!error)
        error = os_know_file(store->write_fd, &store->inode, &store->dev);
    return error ? error : os_know_file(store->memfd, &store->inode, &store->dev);
}

bool store_has_files(const struct store *store)
{
    return os_is_file(store->memfd, store->inode) && os_is_file(store->write_fd, store->inode) &&
           os_is_file(store->lock_fd, store->lock_inode);
}

static int open_files(struct store *store)
{
    store->write_fd = os_memfd("ksmpy", bytes_of(frame_limit(store)));
    if (store->write_fd < 0)
        return store->write_fd;
    store->lock_fd = os_memfd("ksmpy-lease", PAGE_SIZE);
    if (store->lock_fd < 0)
        return store->lock_fd;
    store->memory = os_map_hidden(store->write_fd, 0, bytes_of(frame_limit(store)));
    if (!store->memory || store_begin_to_show(store) < 0)
        return -ENOMEM;
    store->memfd = os_seal(store->write_fd);
    return store->memfd < 0 ? store->memfd : store_know_files(store);
}

static int open_records(struct store *store)
{
    uint64_t span = (uint64_t)1 << store->span_shift;
    store->frames = os_reserve(sizeof(struct frame) * frame_limit(store));
    store->head = os_alloc(sizeof *store->head);
    if (!store->frames || !store->head)
        return -ENOMEM;
    store_default_rules(store->head->knobs);
    store_new_key(store);
    int error = arena_init(&store->dead, sizeof(uint32_t), frame_limit(store));
    for (int node = 0; node < store->nodes && !error; node++) {
        store->records[node] =
            (struct arena){.base = (uint8_t *)(store->frames + first_frame(store, node)),
                           .stride = sizeof(struct frame),
                           .limit = span};
        error = ids_init(&store->ids[node], span, &store->head->node[node].ids);
        if (!error)
            error = forest_init(&store->stable[node], frame_limit(store),
                                &store->head->node[node].stable);
    }
    return error;
}

int store_init(struct store *store, int nodes, const int *node_ids)
{
    memset(store, 0, sizeof *store);
    store_forget_files(store);
    store->slot = NO_SLOT;
    store->nodes = nodes;
    store->span_shift = store_choose_span(nodes);
    int error = open_files(store);
    if (!error)
        error = open_records(store);
    if (error)
        store_destroy(store);
    else
        store_place(store, node_ids);
    return error;
}

void store_destroy(struct store *store)
{
    if (store->shared) {
        store_detach(store);
        return;
    }
    os_unmap((void *)(uintptr_t)store->memory, bytes_of(frame_limit(store)));
    os_unmap(store->frames, sizeof(struct frame) * frame_limit(store));
    for (int node = 0; node < store->nodes; node++) {
        ids_destroy(&store->ids[node]);
        arena_destroy(&store->stable[node].roots);
    }
    arena_destroy(&store->dead);
    os_unmap(store->head, sizeof *store->head);
    store_close_files(store);
    store->memory = NULL;
    store->frames = NULL;
    store->head = NULL;
}

void store_forget_files(struct store *store)
{
    store->memfd = store->write_fd = store->lock_fd = -1;
}

void store_close_files(struct store *store)
{
    int files[] = {store->memfd, store->write_fd, store->lock_fd};
    const uint64_t inodes[] = {store->inode, store->inode, store->lock_inode};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++)
        if (files[i] >= 0 && (!inodes[i] || os_is_file(files[i], inodes[i])))
            close(files[i]);
    store_forget_files(store);
}

/*
 * What was mapped with MADV_DONTFORK is not here, and its address may be
 * another's by now.  The descriptors of a shared store stay, to attach again.
 */
void store_abandon(struct store *store)
{
    store->memory = NULL;
    store->dead_count = 0;
    store->lease = store->taking; /* stays mapped: it is this child's lease */
    store->slot = store->taking_slot;
    store->taking = NULL;
    if (!store->shared) {
        store_close_files(store);
        return;
    }
    if (store->lease)
        slot_sign(store);
    arena_destroy(&store->dead);
    store->index = NULL;
    store->head = NULL;
    store->frames = NULL;
    store->counts[0].base = NULL;
    store->depth = 0;
    store->broken = 0;
    store_forgive(store);
}

void store_end_lease(struct store *store)
{
    os_lease_drop(store->lease);
    store->lease = NULL;
}

/* ---- frames ---- */

/* Whose it is comes first: the process may die in between. */
static void set_state(struct store *store, uint32_t frame, enum frame_state state)
{
    frame_at(store, frame)->owner = (uint16_t)store->slot;
    atomic_signal_fence(memory_order_seq_cst);
    frame_at(store, frame)->state = (uint8_t)state;
}

/* Below the high mark every id has a record, so it goes back where there is no memory for one. */
static uint32_t take_ids(struct store *store, int node, uint64_t *n)
{
    struct ids *ids = &store->ids[node];
    uint64_t high = ids->state->high;
    uint32_t local = ids_take(ids, n);
    if (local != NO_INDEX && (arena_grow(&store->records[node], local + *n) < 0 ||
                              store_count_for_all(store, node, local + *n) < 0)) {
        ids_give(ids, local, *n);
        ids->state->high = high;
        return NO_FRAME;
    }
    return local == NO_INDEX ? NO_FRAME : local + first_frame(store, node);
}

/* Nothing is there, or was there yet. */
static void make_free(struct store *store, uint32_t first, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        frame_at(store, first + (uint32_t)i)->state = FRAME_FREE;
    ids_give(&store->ids[frame_node(store, first)], frame_local(store, first), n);
}

uint32_t store_take(struct store *store, int node, uint64_t *n)
{
    *n = least(*n, store_room(store));
    if (!*n || store->broken || !store_lock(store))
        return NO_FRAME;
    uint32_t first = take_ids(store, node, n);
    for (uint64_t i = 0; i < *n && first != NO_FRAME; i++) {
        *frame_at(store, first + (uint32_t)i) =
            (struct frame){.dup_next = NO_FRAME, .dup_prev = NO_FRAME, .born = store->head->forks};
        set_state(store, first + (uint32_t)i, FRAME_FILLING);
    }
    store->broken = store_show(store);
    if (store->broken && first != NO_FRAME) {
        make_free(store, first, *n);
        first = NO_FRAME;
    }
    store_unlock(store);
    return first;
}

/* Writing is a third cheaper than mapping fresh pages and copying: they are not cleared first. */
int64_t store_fill(struct store *store, uint32_t first, const void *pages, uint64_t n)
{
    return os_write(store->write_fd, frame_offset(store, first), pages, n);
}

/* How many of a frame's sharers are this process's; a private store's all are, and go uncounted. */
static uint32_t *count_of(const struct store *store, uint32_t frame)
{
    return arena_at(&store->counts[frame_node(store, frame)], frame_local(store, frame));
}

static bool may_join(const struct store *store, uint32_t frame)
{
    if (!store->shared)
        return true;
    const struct frame *record = frame_at(store, frame);
    if (record->state == FRAME_FILLING)
        return record->owner == store->slot;
    return record->state == FRAME_LIVE && has_room(store, record);
}

void store_rejoin(struct store *store, uint32_t frame)
{
    struct store_head *head = store->head;
    struct frame *record = frame_at(store, frame);
    if (store->shared) {
        ++*count_of(store, frame);
        head->slots[store->slot].pages++;
    }
    head->shared_pages++;
    if (record->sharers++ == 0) {
        head->shared_frames++;
        head->stale_frames -= record->state == FRAME_LIVE;
    }
}

int64_t store_join(struct store *store, uint32_t first, uint64_t n)
{
    int error = 0;
    uint64_t i = 0;
    if (!store_lock(store))
        return store_why_not(store);
    if (store->shared)
        error = arena_grow(&store->counts[frame_node(store, first)], frame_local(store, first) + n);
    for (; !error && i < n && may_join(store, first + (uint32_t)i); i++)
        store_rejoin(store, first + (uint32_t)i);
    store_unlock(store);
    return error ? error : i ? (int64_t)i : -ESTALE;
}

/* Nobody of this process maps it any more, and it is in a tree. */
static void free_live_frame(struct store *store, uint32_t frame)
{
    stable_remove(store, frame);
    store_free(store, frame);
}

void store_drop(struct store *store, uint32_t frame, uint32_t n)
{
    struct frame *record = frame_at(store, frame);
    store->head->shared_pages -= n;
    record->sharers -= n;
    if (record->sharers || !n)
        return;
    store->head->shared_frames--;
    record->left = store->head->forks;
    if (record->state != FRAME_LIVE)
        return; /* its maker will free it */
    if (store_leased(store, record))
        store->head->stale_frames++;
    else
        free_live_frame(store, frame);
}

void store_leave(struct store *store, uint32_t frame)
{
    if (!store_lock(store)) {
        store_owe(store, (struct debt){.kind = DEBT_LEAVE, .frame = frame});
        return;
    }
    if (store->shared) {
        --*count_of(store, frame);
        store->head->slots[store->slot].pages--;
        if (is_full(store, frame_at(store, frame)))
            event_add(store, frame_at(store, frame)->tree, frame_at(store, frame)->sum);
    }
    store_drop(store, frame, 1);
    store_unlock(store);
}

void store_pin(struct store *store, uint32_t frame)
{
    uint16_t *pins = &frame_at(store, frame)->pins;
    store->pinned = true;
    if (!store->shared) {
        *pins += *pins < UINT16_MAX;
        return;
    }
    store_bequeath(store); /* children inherit that mapping, and nobody knows of it */
    if (!store_lock(store)) {
        store_owe(store, (struct debt){.kind = DEBT_PIN, .frame = frame});
        return;
    }
    if (!(*count_of(store, frame) & PINNED)) {
        *count_of(store, frame) |= PINNED;
        ++*pins;
    }
    store_unlock(store);
}

void store_unpin(struct store *store, uint32_t frame)
{
    struct frame *record = frame_at(store, frame);
    if (store->shared && !(*count_of(store, frame) & PINNED))
        return;
    if (store->shared)
        *count_of(store, frame) &= ~PINNED;
    if (record->pins)
        record->pins--;
    if (!record->sharers)
        record->left = store->head->forks; /* until now children have inherited that mapping */
}

void store_adopt(struct store *store, uint32_t frame, int tree)
{
    stable_add(store, frame, tree);
    event_add(store, tree, frame_at(store, frame)->sum);
}

void store_give_back(struct store *store, uint32_t first, uint64_t n)
{
    bool locked = store_lock(store);
    for (uint64_t i = 0; i < n; i++)
        if (locked)
            store_free(store, first + (uint32_t)i);
        else
            store_owe(store, (struct debt){.kind = DEBT_FREE, .frame = first + (uint32_t)i});
    if (locked)
        store_unlock(store);
}

/*
 * A list that cannot grow costs a frame until the store is closed, which is better than an error
 * here.
 */
void store_free(struct store *store, uint32_t frame)
{
    set_state(store, frame, FRAME_DEAD);
    if (arena_grow(&store->dead, store->dead_count + 1) == 0)
        *(uint32_t *)arena_at(&store->dead, store->dead_count++) = frame;
}

static int by_index(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* false: they stay DEAD, and ours, until the lock is to be had. */
static bool punch(struct store *store, uint32_t first, uint64_t n)
{
    bool done = os_punch(store->write_fd, frame_offset(store, first), bytes_of(n)) == 0;
    if (!store_lock(store))
        return false;
    if (done)
        make_free(store, first, n);
    for (uint64_t i = 0; i < n && !done; i++)
        store_free(store, first + (uint32_t)i); /* tried again at the next flush */
    store_unlock(store);
    return true;
}

/* Some may be added meanwhile: where the lock's last owner died, or a hole could not be punched. */
void store_flush(struct store *store)
{
    uint64_t count = store->dead_count, done = 0;
    uint32_t *dead = (uint32_t *)(void *)store->dead.base;
    if (!count || !store->memory) /* a forked child has no part in the store's memory */
        return;
    if (!store_has_files(store))
        return;
    qsort(dead, count, sizeof *dead, by_index);
    for (uint64_t end; done < count; done = end) {
        uint32_t first = dead[done];
        for (end = done + 1; end < count && dead[end] == first + (end - done); end++)
            if (frame_node(store, dead[end]) != frame_node(store, first))
                break;
        if (!punch(store, first, end - done))
            break;
    }
    store->dead_count -= done;
    memmove(dead, dead + done, store->dead_count * sizeof *dead);
}

/* Freed frames may have no record behind them. */
bool frame_is_live(const struct store *store, uint32_t frame)
{
    if (frame >> store->span_shift >= (uint32_t)store->nodes)
        return false;
    return ids_has(&store->ids[frame_node(store, frame)], frame_local(store, frame)) &&
           frame_at(store, frame)->state == FRAME_LIVE;
}

#define REAP_STEP 4096 /* frames that are looked at before others get the lock */

static void reap_some(struct store *store, int node, uint64_t local, uint64_t end)
{
    if (!store_lock(store))
        return;
    for (; local < end; local++) {
        uint32_t frame = (uint32_t)local + first_frame(store, node);
        const struct frame *record = frame_at(store, frame);
        if (!frame_is_live(store, frame) || record->sharers || store_leased(store, record))
            continue;
        store->head->stale_frames--;
        free_live_frame(store, frame);
    }
    store_unlock(store);
}

bool store_reap(struct store *store)
{
    slots_reap(store);
    for (int node = 0; node < store->nodes && store->head->stale_frames; node++) {
        uint64_t high = store->ids[node].state->high;
        for (uint64_t at = 0; at < high; at += REAP_STEP)
            reap_some(store, node, at, high - at < REAP_STEP ? high : at + REAP_STEP);
    }
    store_flush(store);
    return store->head->stale_frames == 0;
}

uint64_t store_bytes(const struct store *store)
{
    uint64_t frames = 0;
    for (int node = 0; node < store->nodes; node++)
        frames += store->ids[node].state->used;
    return bytes_of(frames);
}

uint64_t store_metadata_bytes(const struct store *store)
{
    uint64_t bytes = store->dead.committed * store->dead.stride +
                     store->debts.committed * sizeof(struct debt) + sizeof *store->head;
    for (int node = 0; node < store->nodes; node++) {
        uint64_t high = store->ids[node].state->high;
        bytes += high * sizeof(struct frame) + ids_words(high) * sizeof(uint64_t) +
                 store->stable[node].state->trees * sizeof(struct rb_tree) +
                 store->counts[node].committed * sizeof(uint32_t);
    }
    return bytes + (2 * store->head->announced_size + store->events.committed) * sizeof(uint64_t);
}
