#include "os/arena.h"

#include <errno.h>
#include <stdatomic.h>

#include "base/pages.h"
#include "os/files.h"
#include "os/map.h"

/*
 * By how many bytes an arena grows at least.  A larger step takes fewer system calls and wastes
 * more; it is smaller in a file, which may lie on a small file system and takes its memory at once.
 */
#define COMMIT_STEP ((size_t)256 << 10)
#define FILE_STEP ((size_t)32 << 10)

static size_t round_up(size_t bytes, size_t step)
{
    return (bytes + step - 1) / step * step;
}

int arena_init(struct arena *arena, size_t stride, uint64_t limit)
{
    size_t size = round_up(stride * limit, COMMIT_STEP);
    *arena = (struct arena){.stride = stride, .limit = limit};
    arena->base = os_reserve(size);
    /* The kernel leaves untouched memory out of a core, but a debugger's gcore writes zeros for it. */
    os_dont_dump(arena->base, size);
    return arena->base ? 0 : -ENOMEM;
}

void arena_in_file(struct arena *arena, size_t stride, uint64_t limit, void *base, int fd,
                   uint64_t inode, uint64_t offset)
{
    *arena = (struct arena){.base = base,
                            .stride = stride,
                            .limit = limit,
                            .in_file = true,
                            .fd = fd,
                            .inode = inode,
                            .offset = offset};
}

void arena_destroy(struct arena *arena)
{
    if (!arena->in_file)
        os_unmap(arena->base, round_up(arena->stride * arena->limit, COMMIT_STEP));
    arena->base = NULL;
}

int arena_allocate(const struct arena *arena, size_t offset, size_t bytes)
{
    if (!os_is_file(arena->fd, arena->inode))
        return -EBADF;
    return os_allocate(arena->fd, arena->offset + offset, bytes);
}

int arena_punch(const struct arena *arena, size_t offset, size_t bytes)
{
    if (!os_is_file(arena->fd, arena->inode))
        return -EBADF;
    return os_punch(arena->fd, arena->offset + offset, bytes);
}

int arena_grow(struct arena *arena, uint64_t count)
{
    if (count <= arena->committed)
        return 0;
    if (count > arena->limit)
        return -ENOMEM;
    size_t step = arena->in_file ? FILE_STEP : COMMIT_STEP;
    size_t old_end = round_up(arena->stride * arena->committed, step);
    size_t new_end = round_up(arena->stride * count, step);
    if (new_end > old_end) {
        size_t more = new_end - old_end;
        int error = arena->in_file ? arena_allocate(arena, old_end, more)
                                   : os_commit(arena->base + old_end, more);
        if (error)
            return error;
    }
    arena->committed = count;
    return 0;
}

/* ---- ids ---- */

#define WORD_BITS 64
/*
 * How many words (64 ids each) a search for a run looks at before fresh ids are taken: more would
 * use old ids better, and take longer each time where free ids are scattered.
 */
#define SEARCH_WORDS 4096

static uint64_t *word_of(const struct ids *ids, uint64_t id)
{
    return arena_at(&ids->words, id / WORD_BITS);
}

bool ids_has(const struct ids *ids, uint32_t id)
{
    return id < ids->state->high && (*word_of(ids, id) >> (id % WORD_BITS) & 1);
}

int ids_init(struct ids *ids, uint64_t limit, struct ids_state *state)
{
    *ids = (struct ids){.limit = limit, .state = state};
    return arena_init(&ids->words, sizeof(uint64_t), ids_words(limit));
}

void ids_destroy(struct ids *ids)
{
    arena_destroy(&ids->words);
}

/* The first free id at or after from, below the high mark; or the high mark. */
static uint64_t next_free(const struct ids *ids, uint64_t from)
{
    while (from < ids->state->high) {
        uint64_t rest = ~*word_of(ids, from) >> (from % WORD_BITS);
        if (rest) {
            from += (uint64_t)__builtin_ctzll(rest);
            return from < ids->state->high ? from : ids->state->high;
        }
        from = (from / WORD_BITS + 1) * WORD_BITS;
    }
    return ids->state->high;
}

static uint64_t run_length(const struct ids *ids, uint64_t first, uint64_t n)
{
    uint64_t length = 0;
    while (length < n && first + length < ids->state->high &&
           !ids_has(ids, (uint32_t)(first + length)))
        length++;
    return length;
}

static void mark(struct ids *ids, uint64_t first, uint64_t n, bool used)
{
    for (uint64_t id = first; id < first + n; id++) {
        uint64_t bit = (uint64_t)1 << (id % WORD_BITS);
        if (used)
            *word_of(ids, id) |= bit;
        else
            *word_of(ids, id) &= ~bit;
    }
    ids->state->used = used ? ids->state->used + n : ids->state->used - n;
}

/*
 * The first free run of n in [from, to) of used space; or the longest one, with its length in
 * *best.
 */
static uint64_t search(const struct ids *ids, uint64_t from, uint64_t to, uint64_t n,
                       uint64_t *best)
{
    uint64_t where = NO_INDEX;
    *best = 0;
    for (uint64_t id = next_free(ids, from); id < to; id = next_free(ids, id)) {
        uint64_t length = run_length(ids, id, n);
        if (length > *best) {
            *best = length;
            where = id;
        }
        if (length == n)
            break;
        id += length;
    }
    return where;
}

static int allocate(struct ids *ids, uint64_t high)
{
    int error = arena_grow(&ids->words, ids_words(high));
    return error || !ids->records ? error : arena_grow(ids->records, high);
}

int ids_allocate(struct ids *ids)
{
    return allocate(ids, ids->state->high);
}

/* The bits of a word, whose first one is that of an id, up to an end. */
static uint64_t bits_below(uint64_t id, uint64_t end)
{
    return end - id < WORD_BITS ? ((uint64_t)1 << (end - id)) - 1 : UINT64_MAX;
}

/* Ids that were never used may be marked, by a process that died when it had taken them. */
static void clear_above(struct ids *ids, uint64_t high)
{
    uint64_t first = ids->state->high / WORD_BITS * WORD_BITS;
    for (uint64_t id = first; id < high; id += WORD_BITS) {
        uint64_t kept = id == first ? bits_below(id, ids->state->high) : 0;
        if (*word_of(ids, id) & ~kept)
            *word_of(ids, id) &= kept;
    }
}

/*
 * Raises the high mark.  Memory comes first, for the records too: a process may die in between, and
 * whoever goes on with its ids touches all that is below the mark.
 */
static bool raise_high(struct ids *ids, uint64_t high)
{
    if (high > ids->state->high) {
        if (allocate(ids, high) < 0)
            return false;
        clear_above(ids, high);
        atomic_signal_fence(memory_order_seq_cst);
        ids->state->high = high;
        atomic_signal_fence(memory_order_seq_cst);
    }
    return true;
}

/*
 * Ids that were used before come first, if they have a whole run near the cursor; then fresh ids;
 * then the longest free run of all that were used before.
 */
uint32_t ids_take(struct ids *ids, uint64_t *n)
{
    uint64_t found = 0, where = NO_INDEX;
    if (ids->state->high - ids->state->used >= *n)
        where = search(ids, ids->state->cursor,
                       least(ids->state->high, ids->state->cursor + SEARCH_WORDS * WORD_BITS), *n,
                       &found);
    if (found < *n && ids->state->high < ids->limit) {
        where = ids->state->high;
        found = least(*n, ids->limit - ids->state->high);
        if (!raise_high(ids, where + found))
            found = 0;
    }
    if (!found)
        where = search(ids, 0, ids->state->high, *n, &found);
    if (!found)
        return NO_INDEX;
    mark(ids, where, found, true);
    ids->state->cursor = where + found;
    *n = found;
    return (uint32_t)where;
}

uint64_t ids_used(const struct ids *ids, uint32_t first, uint64_t n)
{
    uint64_t used = 0;
    for (uint64_t id = first; id < first + n && id < ids->state->high; id += WORD_BITS)
        used +=
            (uint64_t)__builtin_popcountll(*word_of(ids, id) & bits_below(id, ids->state->high));
    return used;
}

/*
 * Searches ids that were used before, near the cursor, for free blocks in a row: returns the first
 * id, and in *n how many ids there are.
 */
static uint64_t search_blocks(const struct ids *ids, uint64_t block, uint64_t *n)
{
    uint64_t most = *n, at = (ids->state->cursor + block - 1) / block * block;
    uint64_t end = least(ids->state->high, at + SEARCH_WORDS * WORD_BITS);
    for (*n = 0; at + block <= end; at += block) {
        while (*n < most && at + *n + block <= end && !ids_used(ids, (uint32_t)(at + *n), block))
            *n += block;
        if (*n)
            return at;
    }
    return NO_INDEX;
}

/* Ids between the highest in use and the next multiple of a block stay free, for ids_take(). */
uint32_t ids_take_blocks(struct ids *ids, uint64_t block, uint64_t *n)
{
    uint64_t where = NO_INDEX, found = *n = *n / block * block;
    if (ids->state->high - ids->state->used >= block)
        where = search_blocks(ids, block, &found);
    if (where == NO_INDEX) {
        where = (ids->state->high + block - 1) / block * block;
        found = least(*n, where < ids->limit ? (ids->limit - where) / block * block : 0);
        if (!found || !raise_high(ids, where + found))
            return NO_INDEX;
    }
    mark(ids, where, found, true);
    *n = found;
    return (uint32_t)where;
}

bool ids_reach(struct ids *ids, uint64_t end)
{
    return end <= ids->limit && raise_high(ids, end);
}

void ids_give(struct ids *ids, uint32_t first, uint64_t n)
{
    mark(ids, first, n, false);
    if (first < ids->state->cursor)
        ids->state->cursor = first;
}

void ids_clear(struct ids *ids)
{
    for (uint64_t id = 0; id < ids->state->high; id += WORD_BITS)
        *word_of(ids, id) = 0;
    ids->state->used = ids->state->cursor = 0;
}

void ids_mark(struct ids *ids, uint32_t id)
{
    mark(ids, id, 1, true);
}
