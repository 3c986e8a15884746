/*
 * The store: one sealed memfd with the frames, and a record for each.
 *
 * A frame's index is its place in the file.  Every NUMA node has a span of the
 * file to itself, whose memory is asked for on that node, so the index tells
 * the node a frame was made for.
 *
 *   file   | node 0: frames 0 .. span-1 | node 1: span .. 2*span-1 | ...
 *
 * Life of a frame:
 *   store_take() -> store_fill(), never written again -> sharers map it -> the
 *   last one leaves -> freed, or kept ("stale") while a forked child may map it ->
 *   store_free() -> hole punched by store_flush() -> the index may be used again
 */
#ifndef KSMPY_STORE_H
#define KSMPY_STORE_H

#include "arena.h"
#include "os.h"
#include "rbtree.h"

#define MAX_NODES 32
#define NO_FRAME NO_INDEX
#define MAX_LEASES 1024

struct frame {
    struct rb_node rb;  /* in a stable tree, if it heads its chain */
    uint32_t sharers;   /* pages of this process mapped onto it */
    uint64_t sum;       /* checksum of its bytes, as page_sum() cuts it */
    uint32_t dup_next;  /* chain of frames with equal bytes; the head is the one in the tree */
    uint32_t dup_prev;  /* NO_FRAME: head */
    uint8_t tree;       /* which stable tree */
    uint8_t live;       /* in the index */
    uint8_t pinned;     /* never freed: a mapping of it went out of sight */
    uint32_t born;      /* forks that had happened when it was made */
    uint32_t left;      /* the same when its last sharer left it, while it is stale */
};

struct store {
    int memfd;             /* read-only: what overlays are mapped from */
    int write_fd;          /* ours alone: fills frames */
    int lease_fd;
    uint64_t inode, dev;   /* as /proc/self/maps names the memfd */
    int nodes;
    unsigned span_shift;   /* log2 of frames per node */
    uint8_t *memory;       /* the whole file, for comparing and for punching holes; ours alone */
    struct frame *frames;  /* reserved for the whole file */
    struct arena records[MAX_NODES];
    struct ids ids[MAX_NODES];
    struct arena dead;     /* frames waiting for store_flush() */
    uint64_t dead_count;

    struct {             /* forked children that may still map frames */
        uint32_t forks;  /* how many leases were ever taken; a lease is named by its number */
        uint32_t count;  /* of the held ones: those not known to have ended, ascending */
        uint32_t held[MAX_LEASES];
        uint32_t lost;   /* the last one that could not be taken, which never ends; or 0 */
        void *taking;    /* during a fork */
    } leases;
};

int store_init(struct store *store, int nodes, const int *node_ids);
void store_destroy(struct store *store);
void store_close_files(struct store *store);

static inline struct frame *frame_at(const struct store *store, uint32_t frame)
{
    return &store->frames[frame];
}
static inline uint8_t *frame_bytes(const struct store *store, uint32_t frame)
{
    return store->memory + bytes_of(frame);
}
static inline int frame_node(const struct store *store, uint32_t frame)
{
    return (int)(frame >> store->span_shift);
}

/* Up to *n consecutive empty frames; *n says how many. NO_FRAME: out of them. */
uint32_t store_take(struct store *store, int node, uint64_t *n);
/* Copies n pages, which may be live, into frames; how many leading ones, or -errno when none. */
int64_t store_fill(struct store *store, uint32_t first, const void *pages, uint64_t n);
void store_free(struct store *store, uint32_t frame);
/* Gives the memory of freed frames back. */
void store_flush(struct store *store);
uint64_t store_bytes(const struct store *store);
uint64_t store_metadata_bytes(const struct store *store);

/* Around fork(): the child will hold a lease on all frames there are. */
void store_lease_prepare(struct store *store);
void store_lease_parent(struct store *store);
/* Forgets leases that have ended. */
void store_update_leases(struct store *store);
/* May a child forked after a frame was born and before now map it? As of the last update. */
bool store_leased(const struct store *store, const struct frame *frame);

#endif
