/* Making an engine, and taking it apart. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/pages.h"
#include "base/rbtree.h"
#include "engine/fork.h"
#include "engine/knobs.h"
#include "freeze/bystanders.h"
#include "freeze/freezer.h"
#include "freeze/removal_thread.h"
#include "merge/plan.h"
#include "os/arena.h"
#include "os/devices.h"
#include "os/files.h"
#include "os/forks.h"
#include "os/map.h"
#include "os/memory.h"
#include "os/probe.h"
#include "os/proc_maps.h"
#include "pages/candidates.h"
#include "pages/pages.h"
#include "pages/peers.h"
#include "pages/pins.h"
#include "store/attach.h"
#include "store/files.h"
#include "store/layout.h"
#include "store/patience.h"
#include "store/private.h"
#include "store/store.h"

/*
 * How many regions and pages there are records for.  They cost address space only, so they bound
 * nothing that a program would reach: page_limit() allows 8 times the machine's memory, and 64 GiB
 * (MIN_PAGES) where that is more.
 */
#define MAX_REGIONS ((uint64_t)1 << 20)
#define MIN_PAGES ((uint64_t)1 << 24)

static int choose_freeze(const struct ksmpy_caps *caps, int wanted)
{
    bool blocks = caps->uffd && caps->uffd_wp_shmem;
    bool can[] = {
        [KSMPY_FREEZE_UFFD_MOVE] = blocks && caps->uffd_move,
        [KSMPY_FREEZE_UFFD_REMAP] = blocks && caps->mremap_dontunmap,
        [KSMPY_FREEZE_SIGNAL] = caps->mremap_dontunmap,
        [KSMPY_FREEZE_UFFD_WP] = blocks && caps->mremap_dontunmap,
    };
    if (wanted != KSMPY_FREEZE_AUTO)
        return wanted > 0 && wanted <= KSMPY_FREEZE_UFFD_WP && can[wanted] ? wanted : -EOPNOTSUPP;
    if (can[KSMPY_FREEZE_UFFD_WP] && !os_has_devices())
        return KSMPY_FREEZE_UFFD_WP;
    for (int mode = KSMPY_FREEZE_UFFD_MOVE; mode <= KSMPY_FREEZE_SIGNAL; mode++)
        if (can[mode])
            return mode;
    return -EOPNOTSUPP;
}

static int choose_tracking(const struct ksmpy_caps *caps, int wanted)
{
    bool can = caps->uffd_wp_async && caps->pagemap_scan;
    if (wanted == KSMPY_TRACKING_CHECKSUM || (wanted == KSMPY_TRACKING_AUTO && !can))
        return KSMPY_TRACKING_CHECKSUM;
    return can ? KSMPY_TRACKING_WP_ASYNC : -EOPNOTSUPP;
}

static uint64_t page_limit(void)
{
    uint64_t limit = os_memory_pages() * 8;
    limit = limit > MIN_PAGES ? limit : MIN_PAGES;
    return limit < RB_MAX_NODES ? limit : RB_MAX_NODES;
}

static int open_arrays(struct pages *pages)
{
    uint64_t limit = page_limit(), chunks = limit >> CHUNK_SHIFT;
    int error = arena_init(&pages->regions, sizeof(struct region), MAX_REGIONS);
    if (!error)
        error = arena_init(&pages->records, sizeof(struct page), limit);
    if (!error)
        error = arena_init(&pages->chunk_records, sizeof(struct chunk), chunks);
    if (!error)
        error = ids_init(&pages->chunks, chunks, &pages->chunk_state);
    return error ? error : candidates_init(pages);
}

static void close_arrays(struct pages *pages)
{
    pins_forget(pages);
    arena_destroy(&pages->regions);
    arena_destroy(&pages->records);
    arena_destroy(&pages->chunk_records);
    ids_destroy(&pages->chunks);
    candidates_destroy(pages);
}

static void close_engine(ksmpy_engine *engine)
{
    os_maps_close(&engine->pages.maps);
    os_memory_close(&engine->merger.allowance.memory);
    if (engine->pages.store.head || engine->pages.store.write_fd >= 0)
        store_destroy(&engine->pages.store);
    plan_destroy(&engine->merger.plan);
    close_arrays(&engine->pages);
    pthread_mutex_destroy(&engine->lock);
    pthread_mutex_destroy(&engine->arrivals);
    pthread_mutex_destroy(&engine->refreshing);
    pthread_mutex_destroy(&engine->pass);
    os_unmap(engine, sizeof *engine);
}

static int open_store(struct pages *pages, int fd)
{
    struct store *store = &pages->store;
    const int *node_ids = pages->injected_nodes ? NULL : pages->node_ids;
    if (fd <= 0)
        return store_init(store, pages->nodes, node_ids);
    int error = store_attach(store, fd, pages->nodes, node_ids);
    if (!error)
        pages->events_read = store->head->events;
    return error;
}

static int start(ksmpy_engine *engine, int freeze_mode, int store_fd)
{
    int error = os_maps_open(&engine->pages.maps);
    if (!error)
        error = os_memory_open(&engine->merger.allowance.memory);
    if (!error)
        error = open_arrays(&engine->pages);
    if (!error)
        error = open_store(&engine->pages, store_fd);
    if (error)
        return error;
    follow_rules(&engine->pages);
    error = freezer_init(&engine->merger.fz, freeze_mode, engine->pages.tracked);
    if (error)
        return error;
    freezer_know_store(&engine->merger.fz, engine->pages.store.inode, engine->pages.store.dev);
    engine->pages.sum_of_zeros = store_sum(&engine->pages.store, engine->merger.fz.zeros);
    return 0;
}

/*
 * What keeps an engine from being made: -EOPNOTSUPP if the machine lacks something.  If the probe
 * failed because of a limit of this process, the errno that names that limit (-EMFILE for one).
 */
static int lack_of(const struct ksmpy_caps *caps)
{
    int fd = caps->memfd ? 0 : os_memfd("ksmpy-probe", PAGE_SIZE);
    if (fd < 0)
        return fd;
    if (fd)
        close(fd);
    return caps->memfd && caps->madv_populate ? 0 : -EOPNOTSUPP;
}

/* The state before anything is registered or opened, from which close_engine() may be called. */
static void begin_pages(struct pages *pages, const struct ksmpy_options *options)
{
    pages->maps.fd = -1;
    store_forget_files(&pages->store);
    pages->nodes = options->nodes;
    pages->injected_nodes = !options->node_ids;
    pages->first_region = pages->last_region = pages->free_region = pages->arriving = NO_REGION;
    pages->by_address = RB_EMPTY;
    for (int i = 0; i < pages->nodes; i++)
        pages->node_ids[i] = options->node_ids ? options->node_ids[i] : -1;
    default_knobs(pages->knobs);
}

static void put_together(ksmpy_engine *engine)
{
    pthread_mutex_init(&engine->lock, NULL);
    pthread_mutex_init(&engine->arrivals, NULL);
    pthread_mutex_init(&engine->refreshing, NULL);
    pthread_mutex_init(&engine->pass, NULL);
    engine->merger.pages = engine->merger.budget.pages = engine->scanner.pages = &engine->pages;
    engine->merger.awaited = &engine->waiting;
    engine->scanner.merger = &engine->merger;
    engine->scanner.window.region = NO_REGION;
}

struct choice {
    int freeze, tracking;
};

static int choose(const struct ksmpy_options *options, struct choice *out)
{
    struct ksmpy_caps caps;
    os_probe(&caps);
    if (options->nodes < 1 || options->nodes > MAX_NODES)
        return -EINVAL;
    int lack = lack_of(&caps);
    if (lack)
        return lack;
    *out = (struct choice){choose_freeze(&caps, options->freeze),
                           choose_tracking(&caps, options->tracking)};
    bool limited = caps.uffd_errno == EMFILE || caps.uffd_errno == ENFILE;
    if (out->freeze < 0 || out->tracking < 0)
        return limited ? -caps.uffd_errno : -EOPNOTSUPP;
    return 0;
}

/* Not by malloc(): the heap may be registered, and must not freeze what freezes it. */
static int make(const struct ksmpy_options *options, struct choice choice, ksmpy_engine **out)
{
    ksmpy_engine *engine = os_alloc(sizeof *engine);
    if (!engine)
        return -ENOMEM;
    put_together(engine);
    engine->merger.bar.minds_devices =
        options->freeze == KSMPY_FREEZE_AUTO || choice.freeze == KSMPY_FREEZE_UFFD_MOVE;
    begin_pages(&engine->pages, options);
    engine->pages.tracked = choice.tracking == KSMPY_TRACKING_WP_ASYNC;
    int error = start(engine, choice.freeze, options->store_fd);
    if (error) {
        close_engine(engine);
        return error;
    }
    fork_enlist(engine);
    *out = engine;
    return 0;
}

/*
 * A child that is forked while an engine is made, or closed, would have descriptors that nobody there knows
 * of: the store's memory would stay as long as the child, and a userfaultfd on the parent's.
 */
int ksmpy_engine_new(const struct ksmpy_options *options, ksmpy_engine **out)
{
    struct choice choice = {0};
    struct patience patience = {0};
    int error = fork_watch();
    if (error)
        return error;
    fork_hold();
    error = choose(options, &choice);
    fork_let_go();
    if (error)
        return error;
    do {
        fork_hold();
        error = make(options, choice, out);
        fork_let_go();
    } while (try_again(&patience, &error));
    return error;
}

/* The interpreter's lock is waited for before: who forks may have it. */
int ksmpy_engine_close(ksmpy_engine *engine)
{
    if (engine->pages.first_region != NO_REGION && !engine->pages.forked)
        return -EBUSY;
    bystanders_close(&engine->merger.fz.bystanders);
    fork_hold();
    fork_delist(engine);
    freezer_destroy(&engine->merger.fz);
    close_engine(engine);
    fork_let_go();
    return 0;
}

int ksmpy_engine_freeze(ksmpy_engine *engine)
{
    return engine->merger.fz.mode;
}

int ksmpy_engine_tracking(ksmpy_engine *engine)
{
    return engine->pages.tracked ? KSMPY_TRACKING_WP_ASYNC : KSMPY_TRACKING_CHECKSUM;
}

int ksmpy_engine_forked(ksmpy_engine *engine)
{
    return engine->pages.forked;
}

void ksmpy_interrupt(ksmpy_engine *engine)
{
    atomic_store(&engine->interrupted, true);
}
