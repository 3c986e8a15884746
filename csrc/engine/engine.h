/*
 * The engine: what its modules share.  It opens with the design.
 *
 * A region is a registered buffer's whole pages.  Every page has a twelve-byte
 * record; its state says what the engine believes of it, and only ever lags
 * behind the truth, which is in the page tables:
 *
 *   NEW --seen--> SEEN --unchanged for a pass--> looked up by its checksum
 *     in the stable tree      -> SHARED (mapped onto that frame)
 *     among the candidates    -> both SHARED, on a frame made from the other page
 *     equal to its neighbours -> with them on frames in a row (merge/stretch.c)
 *     all zero, use_zero_pages -> ZERO (the kernel's zero page)
 *     nowhere                 -> WAITING: alone in its bucket of the candidates' table
 *   WAITING, and a page of equal checksum comes -> PAIRED: in the unstable tree
 *   a page found written goes back to SEEN; a written SHARED page gets
 *   anonymous memory again first.
 *
 * Where this differs from the kernel's ksmd:
 *   - A page enters the unstable tree only once a second page with its checksum
 *     exists; a page alone waits in a bucket, which costs one cache miss
 *     instead of a descent.  The tree is ordered by checksum and page, not by
 *     bytes that may change, so it need not be thrown away every pass.
 *   - Pages are merged by runs of neighbours, which cost one mapping together.
 *   - With write tracking a page that was not written is not read again.
 *
 * Locks, in the order they are taken:
 *   pass    one pass, unmerge or switch of a knob at a time; may be held for long
 *   lock    all of the structures below; held for a slice of a pass (under a
 *           millisecond or so), so that a fork or a dying owner need not wait
 *   freezer's own lock, while pages are frozen
 *   a shared store's lock, for microseconds: never while anything is frozen.  Another process may
 *           be stopped with it, so that it is tried for, and not waited for, by who has the others
 * fork() takes the second and the third, so it never sees a frozen page or half a change.
 */
#ifndef KSMPY_ENGINE_H
#define KSMPY_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/pages.h"
#include "base/rbtree.h"
#include "freeze/freezer.h"
#include "ksmpy.h"
#include "os/arena.h"
#include "os/maps.h"
#include "os/memory.h"
#include "store/store.h"

#define NO_PAGE NO_INDEX
#define NO_REGION NO_INDEX
#define CHUNK_SHIFT 9 /* page ids are given to regions in chunks of 512 */
#define CHUNK ((uint64_t)1 << CHUNK_SHIFT)
#define SAMPLES 4 /* pages of a chunk that are read to see whether it is written all over */
#define AHEAD 16     /* pages that are read before the first of them is looked up; a power of 2 */
#define WINDOW 8192   /* pages that one question for written pages covers: 32 MiB */
#define SLICE_NS 500000 /* after which who works for longer lets others have the lock */

enum page_state {
    PAGE_NEW,     /* nothing is known */
    PAGE_SEEN,    /* visited; its checksum is known if it was unchanged or there is no tracking */
    PAGE_REFUSED, /* the same, and could be merged if there were more mappings */
    PAGE_WAITING, /* candidate, link: next in its bucket */
    PAGE_PAIRED,  /* candidate, link: its node of the unstable tree */
    PAGE_SHARED,  /* link: its frame */
    PAGE_ZERO,    /* the engine put it on the kernel's zero page */
    PAGE_HOLE,    /* on the zero page by itself: never written by its owner */
    PAGE_STATES,
};

struct page {
    uint32_t sum_low;
    uint16_t sum_high;
    uint16_t bits; /* state: 3, age: 4, visits to skip: 4, node: 5 */
    uint32_t link;
};

static inline uint64_t page_sum(const struct page *page)
{
    return (uint64_t)page->sum_high << 32 | page->sum_low;
}
static inline void page_set_sum(struct page *page, uint64_t sum)
{
    page->sum_low = (uint32_t)sum;
    page->sum_high = (uint16_t)(sum >> 32);
}
static inline unsigned page_field(const struct page *page, int shift, unsigned mask)
{
    return page->bits >> shift & mask;
}
static inline void page_set_field(struct page *page, int shift, unsigned mask, unsigned value)
{
    page->bits = (uint16_t)((page->bits & ~(mask << shift)) | value << shift);
}
#define PAGE_FIELD(name, shift, mask)                                                              \
    static inline unsigned page_##name(const struct page *page)                                    \
    {                                                                                              \
        return page_field(page, shift, mask);                                                      \
    }                                                                                              \
    static inline void page_set_##name(struct page *page, unsigned value)                          \
    {                                                                                              \
        page_set_field(page, shift, mask, value);                                                  \
    }
PAGE_FIELD(state, 0, 7)
PAGE_FIELD(age, 3, 15)
PAGE_FIELD(skip, 7, 15)
PAGE_FIELD(node, 11, 31)

struct region {
    struct rb_node by_address;
    bool used;
    bool lost;      /* its memory is no longer (all) the owner's: left alone */
    bool growing;   /* KSMPY_VMA_GROWING: see stays_apart() */
    bool unsure;    /* a pass was told what was written, and then ended before it got there */
    int vma_flags;  /* enum ksmpy_vma_flag; with UNKNOWN among them it is passed over */
    uintptr_t address;
    uintptr_t shadow; /* see freezer_shadow(), or 0 */
    uint64_t n;
    uint64_t serial; /* of its registration: no other region ever has it */
    uint32_t leaving; /* calls that give its pages back just now: nothing of it is merged */
    uint32_t base;  /* id of its first page */
    uint32_t next, previous; /* in order of registration; of a free record: the next one */
    uint64_t pages_in[PAGE_STATES];
};

struct chunk { /* of page ids */
    uint32_t region;
    bool blind; /* some of its overlays are not tracked */
    bool visited;
    bool sampled; /* at the last visit, whose pass had this number */
    uint8_t restless; /* visits in a row that found all of its pages written */
    uint32_t sampled_in;
    uint32_t samples[SAMPLES]; /* checksums */
};

struct unode { /* node of an unstable tree */
    struct rb_node rb;
    uint32_t page; /* or the next free node */
};

struct cursor {
    uint32_t region; /* NO_REGION: there is none any more, and a pass that has begun is over */
    bool begun;      /* a pass is under way */
    bool eager;                 /* the window was opened, or gone on with, by an eager call */
    uint64_t page;              /* within the region */
    uint64_t window, window_n;  /* pages [window, +n) of the region were asked about */
    uint64_t
        written[WINDOW / 64]; /* since the last pass; without tracking: is the owner's own memory */
    uint64_t zero[WINDOW / 64]; /* is the kernel's zero page */
    uint64_t copied[WINDOW / 64]; /* is an overlay's private copy, if it is an overlay */
    uint32_t holes_first; /* pages [holes_first, +holes_n) are of these kinds (enum os_page) */
    uint64_t holes_n;
    uint8_t kinds[CHUNK];
};

static inline bool has_bit(const uint64_t *bits, uint64_t i)
{
    return bits[i / 64] >> (i % 64) & 1;
}

/* Checksums of pages [first, +n); forgotten whenever others get the lock. */
struct ahead {
    uint32_t first, end; /* page ids; none at or after end */
    uint64_t n;
    uint64_t sums[AHEAD]; /* by the last bits of the id */
};

/*
 * Pages in a row that all want the same thing; carried out together.  With n = 0 it says where the
 * last one ended, which is where its kind would go on best.
 */
struct run {
    enum { RUN_NONE, RUN_FRAME, RUN_PAGE, RUN_ALONE, RUN_EQUAL, RUN_ZERO, RUN_UNMERGE } kind;
    uint32_t page; /* id of the first */
    uint32_t target; /* RUN_FRAME: frame of the first; RUN_PAGE: its equal */
    uint64_t n;
};

struct ksmpy_engine {
    pthread_mutex_t pass, lock;
    _Atomic bool interrupted;
    _Atomic int pass_wanted; /* threads that wait for the pass lock */
    _Atomic int waiting; /* threads that want lock more urgently than a pass does */
    bool forked; /* this is the child's copy of the parent's engine */
    bool astray; /* and some overlay of it went out of sight, and may be mapped anywhere */
    ksmpy_engine *next; /* all engines, for fork */

    struct freezer fz;
    struct os_maps maps;
    bool tracked;
    bool injected_nodes; /* ksmpy_set_nodes() tells where pages are */
    int nodes;
    int node_ids[MAX_NODES];
    uint64_t knobs[KSMPY_KNOB_COUNT];

    struct arena regions; /* struct region */
    uint32_t region_count; /* records in use or free */
    uint32_t first_region, last_region, free_region;
    struct rb_tree by_address; /* all that are registered */
    struct ids chunks;
    struct ids_state chunk_state;
    struct arena chunk_records; /* struct chunk */
    struct arena pages; /* struct page */
    uint64_t registered;
    uint64_t registrations; /* there ever were */
    uint64_t
        refused; /* pages of the longest run that had no mappings since they were last asked for */
    bool asks_again; /* this pass looks REFUSED pages up */
    uint64_t cramped_in; /* 1 + full_scans of the pass in which no overlay could make room */
    uint64_t calm_since; /* full_scans when the last region came, or mappings were last scarce */

    struct store store;
    struct arena pins; /* struct pin, of which some may be the same frame's twice */
    struct arena pins_seen; /* uint64_t: a bit for each frame */
    uint64_t pin_count;
    bool pins_unlisted; /* there was no room for some in that list, which stay for ever */
    uint64_t rule_changes; /* that this engine has followed */
    uint64_t events; /* that it has read */
    struct rb_tree unstable[MAX_NODES];
    struct arena unodes;
    uint32_t unode_count, unode_free;
    uint32_t *page_heads; /* buckets of the pages that wait */
    uint64_t page_buckets;

    struct cursor cursor;
    struct ahead ahead;
    struct run run;
    struct ksmpy_scan_result *result; /* of the call under way */
    uint64_t sum_of_zeros;

    uint64_t pages_in[PAGE_STATES]; /* of all regions */
    uint64_t scanned, skipped, full_scans;
    uint64_t busy, no_budget, no_memory, differed, lost;
    uint64_t lost_told; /* of those in lost: in the result of a pass */
    uint64_t vmas, vmas_counted, vma_limit; /* estimate; at the last count; allowed */
    uint64_t regions_limit; /* up to which regions are taken: half of the kernel's limit at least */
    uint64_t count_again_ns; /* when a count would be worth its time again */
    uint64_t gone_since_count; /* regions */
    bool minds_devices; /* nobody has asked for a way of freezing that does not see their writes */
    bool devices; /* there were some when it was asked last */
    uint64_t devices_asked_ns;
    bool bar_known, merging_barred; /* see merge/merge.c; not known when a slice begins */
    bool unreadable; /* a page of the slice could not be read */
    struct os_memory memory;
    uint64_t allowed, allowed_ms; /* see memory_allows() */
};

static inline struct page *page_record(const ksmpy_engine *engine, uint32_t id)
{
    return arena_at(&engine->pages, id);
}
static inline bool is_shared(const ksmpy_engine *engine, uint32_t id)
{
    return page_state(page_record(engine, id)) == PAGE_SHARED;
}
/* Is it a candidate? */
static inline bool page_waits(const struct page *page)
{
    return page_state(page) == PAGE_WAITING || page_state(page) == PAGE_PAIRED;
}
static inline struct region *region_at(const ksmpy_engine *engine, uint32_t region)
{
    return arena_at(&engine->regions, region);
}
static inline struct chunk *chunk_of(const ksmpy_engine *engine, uint32_t id)
{
    return arena_at(&engine->chunk_records, id >> CHUNK_SHIFT);
}
static inline uint32_t region_of(const ksmpy_engine *engine, uint32_t id)
{
    return chunk_of(engine, id)->region;
}
static inline uintptr_t page_address(const ksmpy_engine *engine, uint32_t id)
{
    const struct region *region = region_at(engine, region_of(engine, id));
    return region->address + bytes_of(id - region->base);
}
/* Which tree a page of that node belongs in. */
static inline int tree_of(const ksmpy_engine *engine, unsigned node)
{
    return engine->knobs[KSMPY_KNOB_MERGE_ACROSS_NODES] ? 0 : (int)node;
}

/* ---- engine/engine.c ---- */

/* Has the program left its descriptors alone? */
bool engine_has_files(const ksmpy_engine *engine);
int knob_check(int knob, uint64_t value); /* -EINVAL */
void engine_lock(ksmpy_engine *engine); /* ahead of a pass under way */
void engine_unlock(ksmpy_engine *engine);
/* Between two slices of what takes long: whoever wants the lock (fork, a dying owner) has it. */
void engine_let_others_in(ksmpy_engine *engine);
/* Still the region that had this serial? Asked after others had the lock. */
bool region_is(const ksmpy_engine *engine, uint32_t region, uint64_t serial);
/* The lowest region that has a page at the address or above, or NO_REGION. */
uint32_t region_from(const ksmpy_engine *engine, uintptr_t address);
/*
 * With the store's lock too, after a wait that nobody has to take part in.  -EPERM in a child that
 * inherited the engine; -ETIMEDOUT: another process keeps the store locked.
 */
int engine_lock_with_store(ksmpy_engine *engine);
void engine_unlock_with_store(ksmpy_engine *engine);
void pass_lock(ksmpy_engine *engine); /* a pass under way ends at its next slice */

/* ---- pages/records.c: records and counters; the only writer of page states ---- */

int node_index(const ksmpy_engine *engine, int node_id); /* or -1 */
/* How many of the pages, from the first one on, still lie where their records say. */
uint64_t pages_on_their_node(const ksmpy_engine *engine, uint32_t id, uint64_t n);
/*
 * Of what kind each page's memory is (enum os_page).  Where the kernel does not tell whether there
 * is any, memory that we mapped is faulted in to find out, and the owner's is taken to be swapped.
 */
int page_kinds(const ksmpy_engine *engine, uint32_t id, uint64_t n, uint8_t *kinds);
void page_become(ksmpy_engine *engine, uint32_t id, enum page_state state, uint32_t link);
bool page_is_zero(const ksmpy_engine *engine, uint32_t id); /* its bytes, live */
/* Out of the candidates' structures, if it is in them: SEEN. */
void page_withdraw(ksmpy_engine *engine, uint32_t id);
void page_share(ksmpy_engine *engine, uint32_t id, uint32_t frame);
/* A SHARED page left its frame, and its memory no longer maps the store. */
void page_unshare(ksmpy_engine *engine, uint32_t id, enum page_state state);
/* Its mapping is not where it was: it may live on elsewhere, and the frame is pinned. */
void page_keep_frame(ksmpy_engine *engine, uint32_t id);
/* Both of it. */
void page_abandon(ksmpy_engine *engine, uint32_t id, enum page_state state);

/* ---- pages/candidates.c: the unstable trees, and the pages that wait for an equal one ---- */

int unstable_init(ksmpy_engine *engine);
void unstable_destroy(ksmpy_engine *engine);
uint64_t unstable_metadata_bytes(const ksmpy_engine *engine);
/* Room for the candidates of that many pages; fails without harm. */
int unstable_resize(ksmpy_engine *engine, uint64_t pages);
/*
 * The candidate with the bytes of page id, or NO_PAGE. The preferred one is taken if it has their
 * checksum.
 */
uint32_t unstable_find(ksmpy_engine *engine, uint32_t id, uint32_t preferred);
/* A frame came, or has room again: candidates of its checksum are looked up in the next pass. */
void unstable_wake(ksmpy_engine *engine, int tree, uint64_t sum);
void unstable_prefetch(const ksmpy_engine *engine, uint64_t sum);
/* The page at that place of its bucket, some time after the one before it, or the bucket. */
void unstable_prefetch_page(const ksmpy_engine *engine, uint64_t sum, int place);
void unstable_add(ksmpy_engine *engine, uint32_t id);
void unstable_remove(ksmpy_engine *engine, uint32_t id);

/* ---- scan/migrate.c ---- */

/* A frame whose memory lies on another node now goes to that node's tree, as in the kernel. */
void frames_follow_nodes(ksmpy_engine *engine);

/* ---- pages/pins.c: frames whose overlays went out of sight ---- */

void pins_add(ksmpy_engine *engine, uint32_t frame);
/* Those that nothing in this process maps any more are kept no longer. */
void pins_look(ksmpy_engine *engine);
/* In a child that has a slot of its own now: they are its own as well. */
void pins_inherit(ksmpy_engine *engine);
void pins_forget(ksmpy_engine *engine); /* there are none any more */

/* ---- scan/neighbours.c: engines of other processes on the same store ---- */

/* At the start of a slice: the store's rules may have been changed. false: it is locked. */
bool follow_rules(ksmpy_engine *engine);
/* At the start of a pass: in a full store, frames that nobody else has joined are left. */
void follow_room(ksmpy_engine *engine);
/* At the start of a pass: pages that wait, and of which others have made frames, are looked up. */
void follow_events(ksmpy_engine *engine);

/* ---- merge/run.c ---- */

/* The runs' longest length. */
#define RUN_MAX (4 * HUGE_PAGES)
/*
 * Runs end where a huge page does, and contain whole huge pages of what they are merged with too,
 * which need not lie in step with them.
 */
bool run_starts_at(uintptr_t address);
/* Have these pages the same checksum and bytes, and the same tree? Live: a hint. */
bool are_equal(const ksmpy_engine *engine, uint32_t a, uint32_t b);
/* What would make the pending run longer, if page id wants it; or NO_INDEX. */
uint32_t run_wanted(const ksmpy_engine *engine, int kind, uint32_t id);
bool run_extends(const ksmpy_engine *engine, int kind, uint32_t id, uint32_t target);
/* The pending run is carried out, and another one begins. */
void run_start(ksmpy_engine *engine, int kind, uint32_t id, uint32_t target);
/* Longer, or another one. */
void run_add(ksmpy_engine *engine, int kind, uint32_t id, uint32_t target);

/* ---- merge/merge.c ---- */

void merge_run(ksmpy_engine *engine); /* carries engine->run out; it is empty then */
void count_refusal(ksmpy_engine *engine, int error, uint64_t pages);
/* Pages onto frames that follow each other; readers find them mapped. */
void merge_onto_frames(ksmpy_engine *engine, uint32_t page, uint32_t frame, uint64_t n);
/*
 * Makes frames of the pages, which become their first sharers: a huge page at a time, so that it
 * is still in the caches when it is compared.  In *n how many pages were dealt with; 0, or why
 * there were none.
 */
int promote(ksmpy_engine *engine, uint32_t page, uint64_t *n);
/* Pages that were just merged: the engine hears of their writers. */
void settle_run(ksmpy_engine *engine, uint32_t page, uint64_t n);

/* ---- merge/stretch.c: neighbours that are equal to each other ---- */

void merge_equal(ksmpy_engine *engine, struct run run);

/* ---- merge/unmerge.c ---- */

static inline bool shows_store(const ksmpy_engine *engine, const struct os_vma *vma)
{
    return vma->inode == engine->store.inode && vma->dev == engine->store.dev;
}
/* Does this mapping show the store, and has its owner not protected it? */
static inline bool is_overlay(const ksmpy_engine *engine, const struct os_vma *vma)
{
    return vma->private_rw && shows_store(engine, vma);
}

/*
 * May n pages of memory be taken?  A merged page that stays so is right; a process that takes more
 * than its cgroups or the machine have left is killed.
 */
bool memory_allows(ksmpy_engine *engine, uint64_t n);
/* Pages of one region whose memory is an overlay become anonymous memory; 0 or the first error. */
int unmerge_pages(ksmpy_engine *engine, uint32_t region, uint64_t first, uint64_t n,
                  enum page_state state);

/*
 * A region's pages come back, in slices.  In between others have the lock, and find some pages of
 * the region NEW and their owner's own, and the others as they were: whatever they do to either is
 * right.  A pass leaves the region alone meanwhile.  Its candidates may still be merged as the equal
 * of another page, but only those that come later in the walk.
 */
struct unmerging {
    uint32_t region;
    uint64_t serial; /* the region's: its number may be another's after a slice */
    uint64_t page; /* of the region: those before it are dealt with */
    bool discard; /* the memory is about to be freed: its bytes are not kept */
    bool no_memory; /* was found for a piece: the others stay merged, too */
    bool waits; /* for direct I/O to end, for a millisecond */
    int io_tries; /* how often it still may */
    int failure; /* the first one, or 0 */
};
void unmerging_begin(ksmpy_engine *engine, struct unmerging *work, uint32_t region, bool discard);
/* One slice; false: that was the last one. */
bool unmerging_step(ksmpy_engine *engine, struct unmerging *work);
void unmerging_end(ksmpy_engine *engine, const struct unmerging *work);
/* From now on every pass looks which of these overlays are private copies. */
void mark_blind(ksmpy_engine *engine, uint32_t page, uint64_t n);
/* Pages that were written; false: that would take more mappings than there may be. */
bool unmerge_run(ksmpy_engine *engine, uint32_t page, uint64_t n);
/*
 * Only the pages whose copy-on-write was broken by a write, from that page of the region on, for a
 * slice; where it goes on.
 */
uint64_t unmerge_written(ksmpy_engine *engine, uint32_t region, uint64_t first);

/* ---- merge/budget.c ---- */

/* At the start of a pass: counts mappings, and finds regions whose memory was taken away. */
void budget_survey(ksmpy_engine *engine);
void budget_find_lost(ksmpy_engine *engine);
void budget_check_lost(ksmpy_engine *engine, uint32_t region); /* this one */
/* Its memory is not, or not all, what we know: it is left alone from now on. */
void lose_region(ksmpy_engine *engine, uint32_t region);
/* May a run of n pages take so many mappings more? */
bool budget_allows(ksmpy_engine *engine, uint64_t n, uint64_t more);
/* The same for a region of n pages that is to be registered; refusing many does not take long. */
bool budget_admits(ksmpy_engine *engine, uint64_t n, uint64_t more);
/*
 * SEEN pages of a run that was refused: they are passed over until a run of that length would not
 * be.
 */
void budget_refuse(ksmpy_engine *engine, uint32_t page, uint64_t n, uint64_t length);
/* Counts anew if there seems to be no room for so many. */
void budget_recount(ksmpy_engine *engine, uint64_t more);
/* The same for what must be done whatever comes later; never counts. */
bool budget_has_room(const ksmpy_engine *engine, uint64_t more);
/* Takes the shortest overlays apart for it, if need be. */
bool budget_make_room(ksmpy_engine *engine, uint64_t more);

/* ---- scan/window.c ---- */

/* What the page tables say about the pages from the cursor on. */
void cursor_open_window(ksmpy_engine *engine, const struct region *region, bool eager);
void cursor_reset(ksmpy_engine *engine);
/* An eager call goes on in a window that another one opened. */
void cursor_turn_eager(ksmpy_engine *engine);
/* What was known of the page when the window was opened is out of date. */
void cursor_page_shared(ksmpy_engine *engine, uint32_t id);
/* Is there no memory of its own behind a page of the slice at hand? */
bool cursor_at_hole(ksmpy_engine *engine, uint32_t id);
/* A region is about to go: the pass goes on with the next one. */
void cursor_leave(ksmpy_engine *engine, uint32_t region);
void page_move_to_node(ksmpy_engine *engine, uint32_t id, unsigned node);

/* ---- scan/sample.c ---- */

enum chunk_look {
    CHUNK_ASK, /* ask what was written */
    CHUNK_SETTLED, /* ask, but what was written is unchanged since the last visit */
    CHUNK_REST, /* do not ask: it is written all over, or may be */
};
/* How to learn what was written to the chunk of n pages that begins with page id. */
enum chunk_look chunk_look(const ksmpy_engine *engine, uint32_t id, uint64_t n, bool eager);
/* The answer. */
void chunk_asked(const ksmpy_engine *engine, uint32_t id, uint64_t n, bool all_written);

/* ---- engine/check.c ---- */

/* After each call that changes something: debug builds stop where a structure is not sound. */
#ifdef KSMPY_DEBUG
void check_step(ksmpy_engine *engine);
#else
static inline void check_step(ksmpy_engine *engine)
{
    (void)engine;
}
#endif

/* ---- engine/fork.c ---- */

/* No fork happens in between. Taken before any lock of an engine's. */
void fork_hold(void);
void fork_let_go(void);
int fork_watch(ksmpy_engine *engine);
void fork_unwatch(ksmpy_engine *engine);
/* In a child: frames that it maps no more, nor can, are kept for it no longer. */
void fork_end_lease(ksmpy_engine *engine);
/* In a child: makes the inherited engine able to unmerge memory of this process. */
int fork_revive(ksmpy_engine *engine);

#endif
