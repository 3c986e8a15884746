/*
 * The store: one file in memory with the frames, a record for each, and the
 * index that finds them by their bytes.  This is what a process has of it.
 *
 * A private store is a sealed memfd that one engine fills, with its index in
 * memory of its own.  A shared store is a file that engines of several
 * processes attach to: it holds the index too, behind a lock that survives
 * whoever dies with it.  Nothing in an index is a pointer, so the same code
 * serves both.
 *
 * Life of a frame:
 *   store_take(): FILLING, its maker's alone -> store_fill(), never written
 *   again -> joined by its maker -> LIVE, in a stable tree, unless another
 *   process came first -> sharers join before they map it, and leave after
 *   they have unmapped it -> the last one leaves: kept ("stale")
 *   while a forked child may map it -> store_free(): DEAD -> hole punched by
 *   store_flush() -> FREE; in a larger folio SPARE first: see store/extents.h
 */
#ifndef KSMPY_STORE_STORE_H
#define KSMPY_STORE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/checksum.h"
#include "base/pages.h"
#include "ksmpy.h"
#include "os/arena.h"
#include "store/layout.h"

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

/* Of the announcements' table: memory for the next one, and what the last one has left behind. */
struct larger_table {
    uint64_t size, rebuilds; /* of the index by then */
};
struct outgrown_table {
    uint64_t size, done; /* entries, of which so many have gone back */
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
    unsigned huge_failures, huge_pause; /* tries in a row; tries that are left out */
    bool tells_huge; /* the page tables say which extents lie on huge pages */
    bool large_folios; /* the file may get some that nobody asked for */
    uint64_t letting_go_ms; /* os_now_ms() from which on extents may be let go */
    uint64_t letting_go_at; /* the number of the extent that is looked at next for that */
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
    struct arena announcements, events; /* uint64_t, see store/board.c */
    struct larger_table larger;
    struct outgrown_table outgrown;
};

static inline struct frame *frame_at(const struct store *store, uint32_t frame)
{
    return &store->frames[frame];
}
/* Does an extent whose first record says so lie on a huge page? */
static inline bool is_huge(uint16_t extent)
{
    return (extent & (EXTENT_LARGE | EXTENT_TORN)) == EXTENT_LARGE;
}
/* To be read: store_look_away() takes it out of the page tables again. */
static inline const uint8_t *frame_bytes(struct store *store, uint32_t frame)
{
    struct frames_read *read = &store->read;
    uint16_t extent = store->frames[frame - frame % HUGE_PAGES].extent;
    uint32_t around = is_huge(extent) ? HUGE_PAGES : FAULT_AROUND; /* mapped at once */
    if (!read->pieces || frame / around != read->last / around) {
        read->first = read->pieces && read->first < frame ? read->first : frame;
        read->end = read->pieces && read->end > frame ? read->end : frame;
        read->last = frame;
        read->pieces += around / FAULT_AROUND;
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

#endif
