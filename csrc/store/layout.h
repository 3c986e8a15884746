/*
 * What the file of a shared store is made of, and how it is told from others.  A private store has
 * the same records, in memory of its own.
 *
 * A frame's index is its place in the file.  Every NUMA node has a span of the file to itself, whose
 * memory is asked for on that node, so the index tells the node a frame was made for.
 *
 *   frames | node 0: frames 0 .. span-1 | node 1: span .. 2*span-1 | ...
 */
#ifndef KSMPY_STORE_LAYOUT_H
#define KSMPY_STORE_LAYOUT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/rbtree.h"
#include "ksmpy.h"
#include "os/arena.h"

#define MAX_NODES KSMPY_MAX_NODES
#define NO_FRAME NO_INDEX
#define MAX_SLOTS 1024
#define NO_SLOT MAX_SLOTS
#define STORE_EVENTS ((uint64_t)1 << 16) /* how many are kept */
#define STORE_KNOBS 3 /* the first ones of enum ksmpy_knob are rules that all sharers follow */

/* In a process's count of its sharers of a frame: it may map the frame for ever. */
#define PINNED 0x80000000u

enum frame_state { FRAME_FREE, FRAME_FILLING, FRAME_LIVE, FRAME_DEAD, FRAME_SPARE };

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
    uint16_t extent; /* EXTENT_LARGE and so on, if one begins here; the last of all members */
};

/* What a record says of the extent that begins there: see store/extents.h. */
#define EXTENT_LARGE 0x8000 /* its pages may be parts of larger folios */
#define EXTENT_TORN 0x4000  /* these are no huge page, or none any more */
#define EXTENT_SPARE 0x3fff /* mask: how many of its frames are SPARE */

/* Who may map frames.  A lock on a slot's byte of the lock file lasts as long as its process. */
enum slot_kind { SLOT_FREE, SLOT_ENGINE, SLOT_CHILD };

struct slot {
    _Atomic uint32_t kind;
    uint32_t pid;
    uint32_t fork; /* SLOT_CHILD: the number of the fork that made it */
    uint64_t pages; /* SLOT_ENGINE: its pages on frames */
    uint64_t kin; /* os_kin() of the process */
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
    uint64_t pid_namespace; /* of who laid it out; 0: not known */
    uint64_t rule_changes; /* how often merge_across_nodes or max_page_sharing was changed */

    uint64_t live_frames;
    uint64_t shared_frames, shared_pages; /* frames with sharers; sharers */
    uint64_t stale_frames;
    uint64_t huge_extents, spare_frames, torn_spare_frames; /* see store/extents.h */
    uint64_t chains, dups;
    struct {
        struct ids_state ids;
        struct forest_state stable;
        uint64_t
            counted; /* frames whose sharers each process has memory to count: see store/room.c */
    } node[MAX_NODES];

    _Atomic uint32_t forks; /* how many there were; each child is named by its number */
    _Atomic uint32_t lost; /* the last one that got no slot, and so never ends; or 0 */
    _Atomic uint32_t slots_end; /* slots from here on were never used */
    struct slot slots[MAX_SLOTS];

    uint64_t announced_size, announced_count; /* see store/board.c */
    uint64_t events; /* how many there ever were */

    uint64_t deaths, rebuilds;
    uint64_t lock_waits, lock_wait_ns, lock_hold_max_ns;
    uint64_t key; /* of the checksums: see checksum_make_key() */
    uint32_t holder; /* of the mutex: its process; 0: nobody */
    bool half_changed; /* who had the mutex left it so, and nobody has mended it yet */
    _Atomic bool full; /* frames have taken what its file system has for them */
};

#define STORE_MAGIC 0x65726f747379706bu /* "kpystore" */
#define STORE_RETIRED 0x656e6f677379706bu

/* Offsets in bytes, wherever nothing else is said. */
struct store_layout {
    uint64_t ids, trees, records, announcements, events, counts, frames, end;
    uint64_t ids_stride, trees_stride; /* from node to node */
    uint64_t announced_size, span; /* entries; frames of a node */
};

struct store_layout store_layout_of(unsigned nodes, unsigned span_shift);
/* log2 of the frames of a node: enough for all memory there is, on each. */
unsigned store_choose_span(int nodes);
struct store_shape store_shape_for(int nodes);
/* -ENODATA: none there yet; -ESTALE: retired; -EPROTO: of another kind; -EUCLEAN: damaged. */
int store_read_shape(int fd, struct store_shape *shape);
int store_make_mutex(pthread_mutex_t *mutex);

#endif
