/*
 * Arrays that grow in place: address space for the largest size is reserved
 * once, and committed as far as it is used.  Elements are named by 32-bit
 * index, never by pointer, and never move.  An array may be a part of a file
 * that several processes map; what one of them has committed all may use.
 *
 * An arena of ids also hands out runs of consecutive indices, because a run of
 * pages mapped onto a run of frames is one mapping instead of many.
 */
#ifndef KSMPY_OS_ARENA_H
#define KSMPY_OS_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NO_INDEX UINT32_MAX

struct arena {
    uint8_t *base;
    size_t stride;
    uint64_t limit;     /* elements there is address space for */
    uint64_t committed; /* elements there is memory for */
    bool in_file;
    int fd;             /* of that file, which is mapped at base from offset on */
    uint64_t inode;     /* its number, as another file may have that descriptor by now */
    uint64_t offset;
};

int arena_init(struct arena *arena, size_t stride, uint64_t limit);
/*
 * As a part of a file of that number, which is mapped already; it is the caller's to unmap.  The
 * descriptor is one that os_know_file() was told of.
 */
void arena_in_file(struct arena *arena, size_t stride, uint64_t limit, void *base, int fd,
                   uint64_t inode, uint64_t offset);
void arena_destroy(struct arena *arena);
/* Makes elements below count usable (zero filled at first use); -ENOMEM, -ENOSPC. */
int arena_grow(struct arena *arena, uint64_t count);
/* Memory for a part of one that is in a file; -ENOSPC; -EBADF: the program has closed that. */
int arena_allocate(const struct arena *arena, size_t offset, size_t bytes);
/* Gives the memory of such a part back, which then reads as zeros; -EBADF as before. */
int arena_punch(const struct arena *arena, size_t offset, size_t bytes);
static inline void *arena_at(const struct arena *arena, uint64_t index)
{
    return arena->base + arena->stride * index;
}

struct ids_state {
    uint64_t high;   /* ids at and above were never used; there is memory for what is below */
    uint64_t used;
    uint64_t cursor; /* where the next search begins */
};

struct ids {
    struct arena words; /* one bit an id: in use */
    struct arena *records; /* one an id, which grow with the words; or NULL */
    uint64_t limit;     /* ids are below this */
    struct ids_state *state;
};

static inline uint64_t ids_words(uint64_t limit)
{
    return limit / 64 + 1;
}

/* state: zeros, or that of ids which are shared. */
int ids_init(struct ids *ids, uint64_t limit, struct ids_state *state);
void ids_destroy(struct ids *ids);
/* A run of *n consecutive ids, or a shorter one (then *n says so); NO_INDEX when there is none. */
uint32_t ids_take(struct ids *ids, uint64_t *n);
/*
 * The same of whole blocks of so many ids, a multiple of 64, each of which begins at a multiple of
 * their length: *n is cut to a number of them.
 */
uint32_t ids_take_blocks(struct ids *ids, uint64_t block, uint64_t *n);
/* Ids below end, which no one has used, are free like others from now on. false: there is no memory. */
bool ids_reach(struct ids *ids, uint64_t end);
/* Memory for all below the high mark, where others say how high that is. */
int ids_allocate(struct ids *ids);
void ids_give(struct ids *ids, uint32_t first, uint64_t n);
uint64_t ids_used(const struct ids *ids, uint32_t first,
                  uint64_t n); /* of n, both multiples of 64 */
bool ids_has(const struct ids *ids, uint32_t id);
void ids_clear(struct ids *ids); /* none is in use; which ones ever were stays known */
void ids_mark(struct ids *ids, uint32_t id);

#endif
