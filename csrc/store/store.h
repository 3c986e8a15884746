/*
 * The store: one file in memory with the frames, a record for each, and the
 * index that finds them by their bytes.
 *
 * A private store is a sealed memfd that one engine fills, with its index in
 * memory of its own.  A shared store is a file that engines of several
 * processes attach to: it holds the index too, behind a lock that survives
 * whoever dies with it.  Nothing in an index is a pointer, so the same code
 * serves both; what only a shared store needs is in store/attach.c, store/members.c and
 * store/announce.c.
 *
 * A frame's index is its place in the file.  Every NUMA node has a span of the
 * file to itself, whose memory is asked for on that node, so the index tells
 * the node a frame was made for.
 *
 *   frames | node 0: frames 0 .. span-1 | node 1: span .. 2*span-1 | ...
 *
 * Life of a frame:
 *   store_take(): FILLING, its maker's alone -> store_fill(), never written
 *   again -> joined by its maker -> LIVE, in a stable tree, unless another
 *   process came first -> sharers join before they map it, and leave after
 *   they have unmapped it -> the last one leaves: kept ("stale")
 *   while a forked child may map it -> store_free(): DEAD -> hole punched by
 *   store_flush() -> FREE
 */
#ifndef KSMPY_STORE_H
#define KSMPY_STORE_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/checksum.h"
#include "base/pages.h"
#include "base/rbtree.h"
#include "ksmpy.h"
#include "os/arena.h"

#define MAX_NODES KSMPY_MAX_NODES
#define NO_FRAME NO_INDEX
#define MAX_SLOTS 1024
#define NO_SLOT MAX_SLOTS
#define STORE_EVENTS ((uint64_t)1 << 16) /* how many are kept */
#define PATIENCE_MS 5000 /* with who holds the lock, or that of who attaches */
#define LOCK_TRY_MS 2 /* with who holds the lock, where others wait for us meanwhile */
#define STORE_KNOBS 3 /* the first ones of enum ksmpy_knob are rules that all sharers follow */

/* In a process's count of its sharers of a frame: it may map the frame for ever. */
#define PINNED 0x80000000u

enum frame_state { FRAME_FREE, FRAME_FILLING, FRAME_LIVE, FRAME_DEAD };

struct frame {
    struct rb_node rb; /* in a stable tree, if it heads its chain */
    uint32_t sharers;  /* pages that are, or are about to be, mapped onto it */
    uint64_t sum;      /* checksum of its bytes, as page_sum() cuts it */
    uint32_t dup_next; /* chain of frames with equal bytes; the head is the one in the tree */
    uint32_t dup_prev; /* NO_FRAME: head */
    uint32_t born;     /* forks that had happened when it was made */
    uint32_t left;     /* the same when its last sharer left it, while it is stale */
    uint16_t owner;    /* FILLING, DEAD: the slot of the process that does so */
    uint16_t pins;     /* sharers whose mapping of it went out of sight, which keeps it */
    uint8_t tree;      /* which stable tree */
    uint8_t state;     /* enum frame_state */
};

/* Who may map frames.  A lock on a slot's byte of the lock file lasts as long as its process. */
enum slot_kind { SLOT_FREE, SLOT_ENGINE, SLOT_CHILD };

struct slot {
    _Atomic uint32_t kind;
    uint32_t pid;
    uint32_t fork;  /* SLOT_CHILD: the number of the fork that made it */
    uint64_t pages; /* SLOT_ENGINE: its pages on frames */
};

/* What must be the same for all who map the file. */
struct store_shape {
    uint64_t magic;
    uint32_t version, page_size;
    uint64_t checksum; /* of a known page: which checksum it is */
    uint32_t nodes, span_shift, slots, record_size;
    uint64_t file_size;
    uint64_t mutex; /* how this process's C library lays out the lock */
    uint64_t sum; /* of all of the above */
};

struct forest_state {
    uint64_t trees;
    uint64_t heads; /* frames in the trees; the others of their chains hang on them */
};

struct store_head {
    struct store_shape shape;
    pthread_mutex_t mutex;
    uint64_t knobs[STORE_KNOBS];
    uint64_t rule_changes; /* how often merge_across_nodes or max_page_sharing was changed */

    uint64_t live_frames;
    uint64_t shared_frames, shared_pages; /* frames with sharers; sharers */
    uint64_t stale_frames;
    uint64_t chains, dups;
    struct {
        struct ids_state ids;
        struct forest_state stable;
        uint64_t
            counted; /* frames whose sharers each process has memory to count: see store/room.c */
    } node[MAX_NODES];

    _Atomic uint32_t forks; /* how many there were; each child is named by its number */
    _Atomic uint32_t lost;  /* the last one that got no slot, and so never ends; or 0 */
    _Atomic uint32_t slots_end; /* slots from here on were never used */
    struct slot slots[MAX_SLOTS];

    uint64_t announced_size, announced_count; /* see store/announce.c */
    uint64_t events;                      /* how many there ever were */

    uint64_t deaths, rebuilds;
    uint64_t lock_waits, lock_wait_ns, lock_hold_max_ns;
    uint64_t key; /* of the checksums: see checksum_make_key() */
    uint32_t holder; /* of the mutex: its process; 0: nobody */
    bool half_changed; /* who died with the mutex left it so, and nobody has mended it yet */
    _Atomic bool full; /* frames have taken what its file system has for them */
};

struct forest { /* a stable tree without its top: see store/stable.c */
    struct arena roots; /* struct rb_tree */
    struct forest_state *state;
};

/* Frames that may be in our page tables, where each counts in our RSS once more. */
struct frames_read {
    uint32_t first, end; /* and some on either side */
    uint32_t last;
    uint32_t pieces; /* of FAULT_AROUND pages */
};

struct store {
    int memfd;           /* read-only: what overlays are mapped from */
    int write_fd;        /* fills frames */
    int lock_fd;         /* the slots' locks */
    uint64_t inode, dev; /* as /proc/self/maps names the file */
    uint64_t lock_inode; /* of lock_fd, on the same file system */
    uint64_t offset;     /* of frame 0 in the file */
    int nodes;
    unsigned span_shift; /* log2 of frames per node */
    bool shared;
    const uint8_t *memory; /* all frames, for comparing: to be read through frame_bytes() */
    struct frames_read read;
    uint64_t readable[MAX_NODES]; /* so many of each node's: those that were ever taken, and more */
    struct store_head *head;
    struct checksum_key key; /* the head's */
    struct frame *frames;
    struct arena records[MAX_NODES];
    struct ids ids[MAX_NODES];
    struct forest stable[MAX_NODES];
    struct arena dead; /* frames waiting for store_flush() */
    uint64_t dead_count;
    void *taking; /* during a fork: the child's lease */
    unsigned taking_slot;

    /* of a shared store */
    void *index; /* the file up to the sharers' counts */
    void *lease; /* holds the slot, or in a forked child what its parent mapped */
    void *gift; /* that lease, while the child takes a slot of its own */
    unsigned slot; /* or NO_SLOT */
    unsigned depth; /* of store_lock() */
    int broken; /* why this process does nothing more with it, as -errno; or 0 */
    bool away; /* another process had the lock for too long when it was last tried */
    bool pinned; /* some frame is, by this process */
    uint32_t pid;
    struct arena debts; /* struct debt, see store/debts.c */
    uint64_t debt_count;
    bool bankrupt; /* some debt could not be noted */
    uint64_t locks, locked_at;
    struct arena counts[MAX_NODES]; /* uint32_t for each frame: how many sharers are ours */
    struct arena announcements, events; /* uint64_t, see store/announce.c */
};

static inline struct frame *frame_at(const struct store *store, uint32_t frame)
{
    return &store->frames[frame];
}
/* To be read: store_look_away() takes it out of the page tables again. */
static inline const uint8_t *frame_bytes(struct store *store, uint32_t frame)
{
    struct frames_read *read = &store->read;
    if (!read->pieces || frame / FAULT_AROUND != read->last / FAULT_AROUND) {
        read->first = read->pieces && read->first < frame ? read->first : frame;
        read->end = read->pieces && read->end > frame ? read->end : frame;
        read->last = frame;
        read->pieces++;
    }
    return store->memory + bytes_of(frame);
}
/* Of a page's bytes, as records have it. */
static inline uint64_t store_sum(const struct store *store, const void *bytes)
{
    return cut_sum(checksum_keyed(&store->key, bytes, PAGE_SIZE));
}
static inline uint64_t frame_offset(const struct store *store, uint32_t frame)
{
    return store->offset + bytes_of(frame);
}
static inline int frame_node(const struct store *store, uint32_t frame)
{
    return (int)(frame >> store->span_shift);
}
static inline uint32_t frame_local(const struct store *store, uint32_t frame)
{
    return frame & (((uint32_t)1 << store->span_shift) - 1);
}
static inline uint32_t first_frame(const struct store *store, int node)
{
    return (uint32_t)node << store->span_shift;
}
static inline uint64_t frame_limit(const struct store *store)
{
    return (uint64_t)store->nodes << store->span_shift;
}
/* May a frame have one more sharer? */
static inline bool has_room(const struct store *store, const struct frame *frame)
{
    return frame->sharers < store->head->knobs[KSMPY_KNOB_MAX_PAGE_SHARING];
}
/* Will it have room again when somebody leaves it? */
static inline bool is_full(const struct store *store, const struct frame *frame)
{
    return frame->sharers == store->head->knobs[KSMPY_KNOB_MAX_PAGE_SHARING];
}

/* ---- store/frames.c ---- */

/* Some frames of each node's, to begin with. */
int store_begin_to_show(struct store *store);
/* All that were ever taken, by any process: whenever the lock, or frames, were taken. */
int store_show(struct store *store);
/* What was read of the frames counts in our RSS no more; at_once: however little it is. */
void store_look_away(struct store *store, bool at_once);
int store_init(struct store *store, int nodes, const int *node_ids);
void store_destroy(struct store *store);
/* In a forked child: nothing of the store is mapped here but overlays. */
void store_abandon(struct store *store);
void store_end_lease(struct store *store); /* nor are those */
void store_new_key(struct store *store); /* at random, but in tests */
void store_default_rules(uint64_t *knobs); /* STORE_KNOBS of them */
unsigned store_choose_span(int nodes);
/* A node whose memory cannot be asked for is no error: the frames are only placed less well. */
void store_place(const struct store *store, const int *node_ids);
void store_forget_files(struct store *store); /* none is open */
/*
 * Are the descriptors still those of the store? The program may have closed them all, and opened
 * files of its own that have their numbers.
 */
bool store_has_files(const struct store *store);
int store_know_files(struct store *store); /* remembers which they are */
void store_close_files(struct store *store);

/* Up to *n consecutive empty frames; *n says how many. NO_FRAME: out of them. */
uint32_t store_take(struct store *store, int node, uint64_t *n);
/* Copies n pages, which may be live, into frames; how many leading ones, or -errno when none. */
int64_t store_fill(struct store *store, uint32_t first, const void *pages, uint64_t n);
/*
 * Before n pages are mapped onto the frames: how many leading ones may be, which nobody frees from
 * now on; or -errno when none.  They are live and have room, or are this process's new ones.
 */
int64_t store_join(struct store *store, uint32_t first, uint64_t n);
/* The same for one that is mapped already, with the lock held. */
void store_rejoin(struct store *store, uint32_t frame);
void store_leave(struct store *store, uint32_t frame); /* one sharer less */
/*
 * With the lock held: a filled frame, whose checksum is known and which has sharers of ours, goes
 * into the index.
 */
void store_adopt(struct store *store, uint32_t frame, int tree);
/* The same for n taken ones that have none: they go back. */
void store_give_back(struct store *store, uint32_t first, uint64_t n);
void store_pin(struct store *store, uint32_t frame); /* its mapping lives on somewhere */
/* Or does so no more, but for children. With the lock held. */
void store_unpin(struct store *store, uint32_t frame);
/* n sharers of a frame have left it. */
void store_drop(struct store *store, uint32_t frame, uint32_t n);
void store_free(struct store *store, uint32_t frame);
/* Gives the memory of freed frames back. */
void store_flush(struct store *store);
bool frame_is_live(const struct store *store, uint32_t frame); /* of any number */
/* Frees the stale frames that nobody can map any more; true: none is left. */
bool store_reap(struct store *store);
uint64_t store_bytes(const struct store *store);
uint64_t store_metadata_bytes(const struct store *store);

/* ---- store/room.c: a shared store on a file system that has a size ---- */

/* How many frames may be taken; none once it is full. */
uint64_t store_room(struct store *store);
void store_fills_up(struct store *store); /* a frame could not be filled */
/* At the start of a pass: is a full one so no more? */
void store_look_for_room(struct store *store);
/*
 * With the lock held, before frames of a node up to high are there: every process will be able to
 * join them.
 */
int store_count_for_all(struct store *store, int node, uint64_t high);
/* The same for a newcomer and the frames there are, as far as there is room. */
void store_count_for(struct store *store, unsigned slot);

/* ---- store/members.c: who uses a store, and who has died ---- */

/*
 * One holds the lock at a time; free for a private store. May be nested.  Whoever has it may be
 * stopped for ever: false after LOCK_TRY_MS, and from then on at once, until it is to be had again.
 * Never waited for longer with another lock in hand.
 */
bool store_lock(struct store *store);
/*
 * After that: -EAGAIN.  Or it is broken for good: -EUCLEAN, the lock is none any more; -EBADF, the
 * program has closed the files of a store that is to be mended; another error, it cannot be read.
 */
static inline int store_why_not(const struct store *store)
{
    return store->broken ? store->broken : -EAGAIN;
}
void store_unlock(struct store *store);
int store_lock_soundly(struct store *store); /* -EAGAIN; -EUCLEAN: it is no lock */
/* The lock's owner may have died in the middle of anything: all but the frames is made anew. */
int store_rebuild(struct store *store); /* -EBADF */
int slot_claim(struct store *store, enum slot_kind kind, unsigned *slot, void **lease);
bool slot_is_held(const struct store *store, unsigned slot);
/* From now on this process's slot is held until its children are gone too. */
void store_bequeath(const struct store *store);
/* In a forked child: says in its slot who it is. */
void slot_sign(const struct store *store);
/* Takes back what processes held that are no more. */
void slots_reap(struct store *store);

/* Around fork(): the child will hold a lease on all frames there are. */
void store_fork_prepare(struct store *store);
void store_fork_parent(struct store *store);
/* May a child forked after a frame was born and before now map it? As of the last reaping. */
bool store_leased(const struct store *store, const struct frame *frame);

/* ---- store/debts.c: what is done to the store once its lock is to be had ---- */

enum debt_kind {
    DEBT_LEAVE, /* frame */
    DEBT_PIN, /* frame */
    DEBT_FREE, /* frame */
    DEBT_WITHDRAW, /* tree, sum */
    DEBT_SETTLE, /* tree, sum */
    DEBT_GIVE_UP, /* tree, sum */
};
struct debt {
    uint64_t sum;
    uint32_t frame;
    uint8_t kind, tree;
};
void store_owe(struct store *store, struct debt debt);
void store_pay(struct store *store); /* all of it, with the lock held */
void store_forgive(struct store *store); /* nobody is owed anything any more */

/* ---- waiting for other processes, with no lock in hand ---- */

struct patience {
    uint64_t last; /* attempt; 0: none yet */
    uint64_t waited; /* for others, in ns: not while this process was stopped itself */
};
/*
 * After an attempt that says -EAGAIN: sleeps, and true; or false, and -ETIMEDOUT, when PATIENCE_MS
 * have passed.  False after any other result.
 */
bool try_again(struct patience *patience, int *error);

/* ---- store/layout.c: the file of a shared store ---- */

#define STORE_MAGIC 0x65726f747379706bu /* "kpystore" */
#define STORE_RETIRED 0x656e6f677379706bu

/* Offsets in bytes, wherever nothing else is said. */
struct store_layout {
    uint64_t ids, trees, records, announcements, events, counts, frames, end;
    uint64_t ids_stride, trees_stride; /* from node to node */
    uint64_t announced_size, span; /* entries; frames of a node */
};

struct store_layout store_layout_of(unsigned nodes, unsigned span_shift);
struct store_shape store_shape_for(int nodes);
/* -ENODATA: none there yet; -ESTALE: retired; -EPROTO: of another kind; -EUCLEAN: damaged. */
int store_read_shape(int fd, struct store_shape *shape);
int store_make_mutex(pthread_mutex_t *mutex);
/* Where the sharers of a slot are counted, in the file: uint32_t for each frame. */
uint64_t counts_offset(const struct store *store, unsigned slot);
uint64_t counts_bytes(const struct store *store);

/* ---- store/attach.c: shared stores ---- */

/*
 * Attaches to the store in a file, which is laid out if nobody uses it; takes a slot.  Here and
 * below, between fork_hold() and fork_let_go(): a child must not inherit what is made meanwhile.
 * So nothing waits here: -EAGAIN where another process is in the way.
 */
int store_attach(struct store *store, int fd, int nodes, const int *node_ids);
/*
 * In a forked child: the same, for the store that its parent was attached to.  Its lease stays
 * until it parts from its parent, having joined the frames that it maps.
 */
int store_attach_again(struct store *store);
void store_part_from_parent(struct store *store);
void store_return_to_parent(struct store *store); /* it does not work out: as before */
void store_detach(struct store *store);
/* The file's descriptors, without looking into it; it is not mapped, and no slot is taken. */
int store_open(struct store *store, int fd);
/* A description of its own, which holds the lock until it is closed; or -EAGAIN, or -errno. */
int attach_lock(int fd, bool exclusive);
/* The process that has the lock of the store in this file, or 0. */
uint32_t store_holder(int fd);
bool store_is_used(const struct store *store); /* has anybody a slot? */
int store_map(struct store *store, const struct store_shape *shape);
void store_unmap(struct store *store);
/* With the attach lock: from now on nobody can attach. */
int store_retire(struct store *store);

/* ---- engine/check.c ---- */

/* Of a store with its lock held, before anything in it is believed: 0 or -EUCLEAN. */
int store_check(const struct store *store);

/* ---- store/announce.c: what processes tell each other ---- */

enum announced {
    ANNOUNCED_NOWHERE, /* now a page of ours waits with it */
    ANNOUNCED_HERE, /* one does already */
    ANNOUNCED_ELSEWHERE, /* one of another process; we are to make the frame */
    ANNOUNCED_SOON, /* somebody does so */
    ANNOUNCED_UNKNOWN, /* the store's lock is not to be had */
};
enum announced announcement_add(struct store *store, int tree, uint64_t sum);
/* Would it be ANNOUNCED_ELSEWHERE? With the lock held. */
bool announcement_is_elsewhere(const struct store *store, int tree, uint64_t sum);
/* A page of ours waits no more. */
void announcement_remove(struct store *store, int tree, uint64_t sum);
/* The page that we were to make a frame of is its sharer now, or is not. */
void announcement_settle(struct store *store, int tree, uint64_t sum, bool shared);
void announcements_forget_slot(struct store *store, unsigned slot);
int announcements_reset(struct store *store);
int announcements_check(const struct store *store); /* 0 or -EUCLEAN */

struct event { /* a frame came, or has room again */
    uint64_t sum;
    int tree;
};
void event_add(struct store *store, int tree, uint64_t sum);
/* The same of a dead process: we are to hear of it too. */
void event_add_for_all(struct store *store, int tree, uint64_t sum);
/* Up to max of those that came since *read, by others; -EOVERFLOW: some were missed. */
int64_t events_read(struct store *store, uint64_t *read, struct event *out, int64_t max);
void events_reset(struct store *store);

/* ---- store/stable.c: the stable trees ---- */

/* Live memory: a hint until it is compared again while frozen. */
int compare_live(const void *a, const void *b);

int forest_init(struct forest *forest, uint64_t limit, struct forest_state *state);
int forest_clear(struct forest *forest); /* -ENOMEM, -ENOSPC: it has no trees at all yet */
/*
 * The frame with these bytes that has room for a sharer, or NO_FRAME. The preferred one is taken
 * if it has their checksum.
 */
uint32_t stable_find(struct store *store, int tree, uint64_t sum, const void *bytes,
                     uint32_t preferred);
/*
 * Frames with these bytes that follow each other and have room for a sharer each: the first of
 * them, in *n how many, of at most *n; or NO_FRAME.  Those that begin with the preferred one are
 * taken if it has their checksum, and else the longest row there is.
 */
uint32_t stable_find_row(struct store *store, int tree, uint64_t sum, const void *bytes,
                         uint32_t preferred, uint64_t *n);
/* How many frames have these bytes, of at most max? */
uint64_t stable_count(struct store *store, int tree, uint64_t sum, const void *bytes, uint64_t max);
/* Is there a frame with this checksum that has room? */
bool stable_knows(const struct store *store, int tree, uint64_t sum);
/* The checksum will be asked for soon. */
void stable_prefetch(const struct store *store, int tree, uint64_t sum);
void stable_add(struct store *store, uint32_t frame, int tree);
void stable_remove(struct store *store, uint32_t frame);
/* Visits the head of each chain; how many there are, or -EUCLEAN. */
typedef void stable_visit(const struct store *store, uint32_t head, int tree, void *argument);
int64_t stable_walk(const struct store *store, int tree, stable_visit *visit, void *argument);

#endif
