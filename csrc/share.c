/*
 * Shared stores: one file that engines of several processes attach to.
 *
 *   | head | ids | trees | records | wanted | news | counts of slot 0, 1, ... | frames |
 *   '---- mapped by all, for writing ----------'   '- each its own, so -'     '- for reading -'
 *
 * The file is sparse, and as long as it can ever become; whatever will be
 * touched through a mapping is allocated first, since a full file system would
 * answer a touch with SIGBUS.  Frames are written with pwrite() and mapped for
 * reading only, so that nobody can write into one by accident.
 *
 * A lock on the file's first byte, the gate, is held by whoever comes or
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

#include "checksum.h"
#include "engine.h"

#define MAGIC 0x65726f747379706bu /* "kpystore" */
#define RETIRED 0x656e6f677379706bu
#define VERSION 1
#define GATE 0
#define PATIENCE_MS 5000

/* ---- layout ---- */

struct layout {
    uint64_t ids, trees, records, wanted, news, counts, frames, end;
    uint64_t wanted_size, span;
};

static uint64_t up(uint64_t bytes, uint64_t step)
{
    return (bytes + step - 1) / step * step;
}

static struct layout layout_of(unsigned nodes, unsigned span_shift)
{
    struct layout at = {.span = (uint64_t)1 << span_shift};
    uint64_t frames = nodes * at.span;
    at.wanted_size = 8 * frames; /* at most half full, for all pages there are; as in wanted.c */
    at.ids = up(sizeof(struct store_head), PAGE_SIZE);
    at.trees = at.ids + nodes * up(ids_words(at.span) * sizeof(uint64_t), PAGE_SIZE);
    at.records = at.trees + nodes * up(frames * sizeof(struct rb_tree), PAGE_SIZE);
    at.wanted = up(at.records + frames * sizeof(struct frame), PAGE_SIZE);
    at.news = at.wanted + at.wanted_size * sizeof(uint64_t);
    at.counts = at.news + STORE_NEWS * sizeof(uint64_t);
    at.frames = up(at.counts + MAX_SLOTS * frames * sizeof(uint32_t), bytes_of(HUGE_PAGES));
    at.end = at.frames + bytes_of(frames);
    return at;
}

uint64_t counts_bytes(const struct store *store)
{
    return frame_limit(store) * sizeof(uint32_t);
}

uint64_t counts_offset(const struct store *store, unsigned slot)
{
    return layout_of((unsigned)store->nodes, store->span_shift).counts + slot * counts_bytes(store);
}

/* ---- shape ---- */

static uint64_t sum_of_shape(const struct store_shape *shape)
{
    uint8_t bytes[64] = {0};
    _Static_assert(offsetof(struct store_shape, sum) <= sizeof bytes, "it fits");
    memcpy(bytes, shape, offsetof(struct store_shape, sum));
    return ksmpy_checksum(bytes, sizeof bytes);
}

/* Of bytes that no simple checksum gets right by chance. */
static uint64_t which_checksum(void)
{
    uint8_t page[PAGE_SIZE];
    for (size_t i = 0; i < PAGE_SIZE; i++)
        page[i] = (uint8_t)(i * 167 + (i >> 8));
    return ksmpy_checksum(page, PAGE_SIZE);
}

static struct store_shape shape_for(int nodes)
{
    struct store_shape shape = {.magic = MAGIC,
                                .version = VERSION,
                                .page_size = PAGE_SIZE,
                                .checksum = which_checksum(),
                                .nodes = (uint32_t)nodes,
                                .span_shift = store_choose_span(nodes),
                                .slots = MAX_SLOTS,
                                .record_size = sizeof(struct frame)};
    shape.file_size = layout_of(shape.nodes, shape.span_shift).end;
    shape.sum = sum_of_shape(&shape);
    return shape;
}

/* -ENODATA: none there yet; -ESTALE: retired; -EPROTO: of another kind; -EUCLEAN: damaged. */
static int read_shape(int fd, struct store_shape *shape)
{
    int64_t size = os_file_size(fd);
    memset(shape, 0, sizeof *shape);
    if (size == 0)
        return -ENODATA;
    if (size < 0 || os_pread(fd, 0, &shape->magic, sizeof shape->magic) < 0)
        return -EPROTO;
    if (shape->magic == RETIRED)
        return -ESTALE;
    if (os_pread(fd, 0, shape, sizeof *shape) < 0)
        return -EPROTO;
    if (shape->magic == 0) /* its maker died before he had finished */
        return -ENODATA;
    if (shape->magic != MAGIC)
        return -EPROTO;
    if (shape->sum != sum_of_shape(shape))
        return -EUCLEAN;
    struct store_shape ours = shape_for((int)shape->nodes);
    if (shape->version != VERSION || shape->page_size != PAGE_SIZE || shape->slots != MAX_SLOTS ||
        shape->checksum != ours.checksum || shape->record_size != ours.record_size)
        return -EPROTO;
    if (shape->nodes < 1 || shape->nodes > MAX_NODES || shape->span_shift > 30 ||
        shape->file_size != layout_of(shape->nodes, shape->span_shift).end)
        return -EPROTO;
    return size == (int64_t)shape->file_size ? 0 : -EUCLEAN;
}

/* ---- the gate ---- */

/* A description of its own, which holds the lock until it is closed; or -errno. */
static int gate_close(int fd, bool exclusive)
{
    int gate = os_reopen(fd, O_RDWR);
    if (gate < 0)
        return gate;
    for (int tries = 0; os_try_lock(gate, GATE, exclusive) < 0; tries++) {
        if (tries == PATIENCE_MS) {
            close(gate);
            return -ETIMEDOUT;
        }
        os_sleep_us(1000);
    }
    return gate;
}

static bool is_used(const struct store *store)
{
    for (unsigned i = 0; i < MAX_SLOTS; i++)
        if (slot_is_held(store, i))
            return true;
    return false;
}

/* ---- mapping ---- */

static void unmap(struct store *store)
{
    struct layout at = layout_of((unsigned)store->nodes, store->span_shift);
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
    return address;
}

static void place_arrays(struct store *store, const struct layout *at)
{
    uint8_t *base = store->index;
    uint64_t words = ids_words(at->span), frames = frame_limit(store);
    int fd = store->write_fd;
    store->head = store->index;
    store->frames = (struct frame *)(void *)(base + at->records);
    arena_in_file(&store->wanted, sizeof(uint64_t), at->wanted_size, base + at->wanted, fd,
                  at->wanted);
    arena_in_file(&store->news, sizeof(uint64_t), STORE_NEWS, base + at->news, fd, at->news);
    for (int node = 0; node < store->nodes; node++) {
        uint64_t i = (uint64_t)node;
        uint64_t ids = at->ids + i * up(words * sizeof(uint64_t), PAGE_SIZE);
        uint64_t trees = at->trees + i * up(frames * sizeof(struct rb_tree), PAGE_SIZE);
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

static int map_store(struct store *store, const struct store_shape *shape)
{
    struct layout at = layout_of(shape->nodes, shape->span_shift);
    store->nodes = (int)shape->nodes;
    store->span_shift = shape->span_shift;
    store->offset = at.frames;
    store->index = map(store->write_fd, 0, at.counts, true);
    store->memory = map(store->memfd, at.frames, at.end - at.frames, false);
    if (!store->index || !store->memory ||
        arena_init(&store->dead, sizeof(uint32_t), frame_limit(store)) < 0) {
        unmap(store);
        return -ENOMEM;
    }
    place_arrays(store, &at);
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
        error = arena_grow(&store->ids[node].words, ids_words(high));
        if (!error)
            error = arena_grow(&store->stable[node].roots, trees);
        if (!error)
            error = arena_grow(&store->records[node], high);
    }
    return error;
}

/* ---- laying out ---- */

static int open_mutex(pthread_mutex_t *mutex)
{
    pthread_mutexattr_t how;
    pthread_mutexattr_init(&how);
    pthread_mutexattr_setpshared(&how, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&how, PTHREAD_MUTEX_ROBUST);
    int error = -pthread_mutex_init(mutex, &how);
    pthread_mutexattr_destroy(&how);
    return error;
}

static int fill_head(struct store *store)
{
    int error = open_mutex(&store->head->mutex);
    for (int node = 0; node < store->nodes && !error; node++)
        error = forest_clear(&store->stable[node]);
    return error ? error : wanted_reset(store);
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
    store->head->shape.magic = MAGIC;
}

/* Nobody uses it; what was there is gone, but for its rules. The shape is written last. */
static int lay_out(struct store *store, int nodes)
{
    struct store_shape shape = shape_for(nodes);
    struct store_head old = {.knobs = {0}};
    int fd = store->write_fd;
    bool keep =
        os_pread(fd, offsetof(struct store_head, knobs), old.knobs, sizeof old.knobs) == 0 &&
        rules_are_sound(old.knobs);
    int error = os_set_size(fd, 0);
    if (!error)
        error = os_set_size(fd, shape.file_size);
    if (!error)
        error = os_allocate(fd, 0, sizeof(struct store_head));
    if (!error)
        error = map_store(store, &shape);
    if (!error) {
        store_default_rules(store->head);
        if (keep)
            memcpy(store->head->knobs, old.knobs, sizeof old.knobs);
        error = fill_head(store);
        if (error)
            unmap(store);
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
    int error = map_store(store, shape);
    if (error)
        return error;
    error = rules_are_sound(store->head->knobs) ? store_lock_patiently(store) : -EUCLEAN;
    if (!error) {
        error = allocate_used(store);
        if (!error)
            error = store_check(store);
        store_flush(store); /* what a rebuild has freed: nobody's, once others have the lock */
        store_unlock(store);
    }
    if (error)
        unmap(store);
    return error;
}

static int own_counts(struct store *store)
{
    uint64_t offset = counts_offset(store, store->slot);
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
    store_lock(store);
    slots_bury(store);
    store_flush(store); /* no slot yet: these frames are nobody's, once others have the lock */
    store_unlock(store);
    void *lease;
    unsigned slot;
    store_lock(store); /* a rebuild asks whose slots are taken */
    int error = slot_claim(store, SLOT_ENGINE, &slot, &lease);
    store_unlock(store);
    if (error)
        return error;
    error = os_dont_fork(lease, PAGE_SIZE);
    if (!error) {
        unsigned before = store->slot;
        store->slot = slot;
        error = own_counts(store);
        store->slot = error ? before : slot;
    }
    if (error) {
        atomic_store(&store->head->slots[slot].kind, SLOT_FREE);
        os_lease_drop(lease);
        return error;
    }
    os_lease_drop(store->lease);
    store->lease = lease;
    return 0;
}

static int open_store(struct store *store, int fd)
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
    return store->memfd < 0 ? store->memfd : os_identify(store->memfd, &store->inode, &store->dev);
}

static int enter(struct store *store, int nodes)
{
    struct store_shape shape;
    bool used = is_used(store);
    int error = read_shape(store->lock_fd, &shape);
    if (error && (error != -ENODATA || used))
        return error == -ENODATA ? -EUCLEAN : error;
    error = used ? join_in(store, &shape, nodes) : lay_out(store, nodes);
    if (error)
        return error;
    error = take_slot(store);
    if (error)
        unmap(store);
    return error;
}

static int enter_by_gate(struct store *store, int nodes)
{
    int gate = gate_close(store->lock_fd, true);
    if (gate < 0)
        return gate;
    int error = enter(store, nodes);
    close(gate);
    return error;
}

int store_attach(struct store *store, int fd, int nodes, const int *node_ids)
{
    int error = open_store(store, fd);
    if (!error)
        error = enter_by_gate(store, nodes);
    if (error)
        store_close_files(store);
    else
        store_place(store, node_ids);
    return error;
}

/* Frames whose mappings went out of sight are kept for as long as the process lives. */
static bool has_pins(struct store *store)
{
    bool pinned = false;
    for (int node = 0; node < store->nodes; node++)
        for (uint64_t i = 0; i < store->counts[node].committed && !pinned; i++)
            pinned = *(uint32_t *)arena_at(&store->counts[node], i) & PINNED;
    return pinned;
}

static void leave_store(struct store *store)
{
    store_lock(store);
    store_flush(store); /* nobody knows of these frames once the slot is free */
    if (!has_pins(store)) {
        os_punch(store->lock_fd, counts_offset(store, store->slot), counts_bytes(store));
        atomic_store(&store->head->slots[store->slot].kind, SLOT_FREE);
        os_lease_drop(store->lease);
    }
    store_unlock(store);
}

int store_attach_again(struct store *store)
{
    void *gift = store->lease;
    store->lease = NULL;
    int error = enter_by_gate(store, store->nodes);
    if (!error) {
        error = need_counts(store);
        if (error) {
            leave_store(store);
            unmap(store);
        }
    }
    if (error)
        store->lease = gift;
    else
        store->gift = gift;
    return error;
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
        leave_store(store);
        unmap(store);
    }
    store_close_files(store);
}

/* ---- looking from outside ---- */

typedef int look_at(struct store *store, const struct store_shape *shape, int error, void *out);

/* Behind the gate, with what read_shape() said. The store is not mapped. */
static int look(int fd, bool exclusive, look_at *at, void *out)
{
    struct store store;
    struct store_shape shape;
    int error = open_store(&store, fd);
    if (!error) {
        fork_hold();
        int gate = gate_close(store.lock_fd, exclusive);
        error = gate < 0 ? gate : at(&store, &shape, read_shape(store.lock_fd, &shape), out);
        if (gate >= 0)
            close(gate);
        fork_let_go();
    }
    store_close_files(&store);
    return error;
}

static void fill_stats(const struct store *store, struct ksmpy_store_stats *out)
{
    const struct store_head *head = store->head;
    *out = (struct ksmpy_store_stats){
        .pages_shared = head->shared_frames,
        .pages_sharing = head->shared_pages - head->shared_frames,
        .stale_frames = head->stale_frames,
        .stable_node_chains = head->chains,
        .stable_node_dups = head->dups,
        .frame_bytes = store_bytes(store),
        .metadata_bytes = store_metadata_bytes(store),
        .merge_across_nodes = head->knobs[KSMPY_KNOB_MERGE_ACROSS_NODES],
        .max_page_sharing = head->knobs[KSMPY_KNOB_MAX_PAGE_SHARING],
        .use_zero_pages = head->knobs[KSMPY_KNOB_USE_ZERO_PAGES],
        .deaths = head->deaths,
        .rebuilds = head->rebuilds,
        .lock_waits = head->lock_waits,
        .lock_wait_ns = head->lock_wait_ns,
        .lock_hold_max_ns = head->lock_hold_max_ns,
    };
}

static int stats_of(struct store *store, const struct store_shape *shape, int error, void *out)
{
    if (error == -ENODATA) {
        struct store_head head = {0};
        store_default_rules(&head);
        store->head = &head;
        fill_stats(store, out);
        ((struct ksmpy_store_stats *)out)->metadata_bytes = 0;
        return 0;
    }
    if (!error)
        error = map_store(store, shape);
    if (error)
        return error;
    error = store_lock_patiently(store);
    if (!error) {
        fill_stats(store, out);
        store_flush(store); /* what a rebuild has freed: nobody's, once others have the lock */
        store_unlock(store);
    }
    unmap(store);
    return error;
}

int ksmpy_store_stats(int fd, struct ksmpy_store_stats *out)
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
        error = map_store(store, shape);
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
    unmap(store);
    return 0;
}

int64_t ksmpy_store_processes(int fd, struct ksmpy_store_process *out, int64_t max)
{
    struct listing listing = {out, max, 0};
    int error = look(fd, false, list, &listing);
    return error ? error : listing.count;
}

static int retire(struct store *store, const struct store_shape *shape, int error, void *out)
{
    const uint64_t retired[PAGE_SIZE / sizeof(uint64_t)] = {RETIRED};
    (void)shape;
    (void)out;
    if (error == -ESTALE)
        return 0;
    if (is_used(store))
        return -EBUSY;
    error = os_set_size(store->write_fd, 0); /* whatever it was: nobody uses it */
    if (error)
        return error;
    int64_t written = os_write(store->write_fd, 0, retired, 1);
    return written < 0 ? (int)written : 0;
}

int ksmpy_store_retire(int fd)
{
    return look(fd, true, retire, NULL);
}
