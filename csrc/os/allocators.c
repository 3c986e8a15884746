/*
 * A stretch of adjoining mappings is walked from its start.  What begins there tells its own size,
 * and the next thing begins right behind it, since the kernel maps things side by side.  Behind
 * memory of unknown owner the next block may begin at any page.  What looks like a block there is
 * believed only if it adjoins something known or the end of the stretch.
 */
#include "os/allocators.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/pages.h"
#include "os/guard.h"
#include "os/presence.h"

/* ---- glibc's blocks ---- */

#define WORD sizeof(uint64_t)
#define HEADER (2 * WORD) /* before the memory of a chunk: see struct header */
#define FLAGS ((uint64_t)7)
#define PREV_INUSE ((uint64_t)1)
#define IS_MMAPPED ((uint64_t)2)
#define LEAST_CHUNK (2 * HEADER)
#define LEAST_ALIGNMENT 5 /* exponents of the powers of two that memalign() may be asked for */
#define MOST_ALIGNMENT 30

struct header {
    uint64_t before; /* of a chunk with a mapping of its own: how far behind its start it begins */
    uint64_t size; /* in bytes, with FLAGS in its lowest bits */
};

static bool read_live(uintptr_t at, void *to, size_t bytes)
{
    return guard_copy(to, (const void *)at, bytes);
}

/*
 * The size of a mapping of one chunk, as the chunk's header tells it, which lies offset bytes
 * behind the mapping's start; 0 if that is no such header.
 */
static size_t mapped_size(const struct header *header, size_t offset)
{
    uint64_t size = header->size - IS_MMAPPED;
    if (header->before != offset || (header->size & FLAGS) != IS_MMAPPED || size >> 47)
        return 0;
    size += offset;
    if (size % PAGE_SIZE == PAGE_SIZE - HEADER)
        size += HEADER; /* since glibc 2.43 the size leaves the header out */
    return size % PAGE_SIZE ? 0 : size;
}

size_t allocators_block_size(const void *page)
{
    struct header header;
    return read_live((uintptr_t)page, &header, sizeof header) ? mapped_size(&header, 0) : 0;
}

/*
 * memalign() leaves the first header as it was and writes another one before the aligned memory,
 * and realloc() changes only the latter.  So there may be two sizes, and memory up to the smaller
 * one belongs to the block in any case.
 */
static size_t block_at(uintptr_t start, uintptr_t end)
{
    size_t size = allocators_block_size((const void *)start);
    for (int power = LEAST_ALIGNMENT; power <= MOST_ALIGNMENT; power++) {
        uintptr_t alignment = (uintptr_t)1 << power;
        uintptr_t at = ((start + HEADER + alignment - 1) & -alignment) - HEADER;
        struct header header;
        if (at - start >= size || at >= end)
            break;
        if (at - start < LEAST_CHUNK || !read_live(at, &header, sizeof header))
            continue;
        size_t other = mapped_size(&header, at - start);
        if (other && other < size)
            size = other;
    }
    return size <= end - start ? size : 0;
}

/* ---- glibc's heaps ---- */

#define HEAP_BYTES ((uintptr_t)64 << 20) /* HEAP_MAX_SIZE of glibc on 64 bits, also the alignment */
#define CHUNKS_SEEN 4 /* how many chunks have to fit before the main heap is believed */

struct heap_info {
    uint64_t arena, previous, size, accessible;
};

static bool is_whole_pages(uint64_t bytes)
{
    return bytes && bytes % PAGE_SIZE == 0;
}

/*
 * Does the heap's header name an arena that can be?  glibc puts an arena's own data into the first
 * of its heaps, right behind that heap's header.
 */
static bool tells_arena(uintptr_t heap, const struct heap_info *info)
{
    uintptr_t first = info->arena & -HEAP_BYTES;
    struct heap_info other;
    if (info->arena - first < sizeof *info || info->arena - first > PAGE_SIZE)
        return false;
    if (first == heap)
        return info->previous == 0;
    return info->previous && info->previous % HEAP_BYTES == 0 &&
           read_live(first, &other, sizeof other) && other.arena == info->arena;
}

static size_t heap_at(uintptr_t start, uintptr_t end)
{
    struct heap_info info;
    if (start % HEAP_BYTES || !read_live(start, &info, sizeof info))
        return 0;
    uint64_t bytes = info.accessible;
    bool whole = is_whole_pages(info.size) && is_whole_pages(bytes) && info.size <= bytes;
    if (!whole || bytes > HEAP_BYTES || bytes > end - start || !tells_arena(start, &info))
        return 0;
    /* A heap shorter than its address space ends the stretch: behind it nothing is accessible. */
    return bytes == HEAP_BYTES || start + bytes == end ? bytes : 0;
}

/* The main heap begins with chunks, and ends where the mapping ends. */
static size_t main_heap_at(uintptr_t start, uintptr_t end)
{
    uintptr_t at = start;
    for (int seen = 0; seen < CHUNKS_SEEN && at < end; seen++) {
        struct header header;
        if (end - at < LEAST_CHUNK || !read_live(at, &header, sizeof header))
            return 0;
        uint64_t size = header.size & ~FLAGS;
        if ((header.size & FLAGS & ~PREV_INUSE) || size < LEAST_CHUNK || size % HEADER ||
            size > end - at || (at == start && !(header.size & PREV_INUSE)))
            return 0;
        at += size;
    }
    return end - start;
}

/* ---- CPython's arenas ---- */

/*
 * As in CPython's Objects/obmalloc.c since 3.10.  Pools are aligned to their size, arenas to pages.
 */
#define ARENA_BYTES ((size_t)1 << 20)
#define POOL_BYTES ((uint32_t)16 << 10)
#define POOL_OVERHEAD 48 /* bytes of a pool's header */
#define POOL_CLASSES 64 /* sizes of objects, one for each multiple of the alignment */
#define POOL_ALIGNMENT 16 /* bytes */

struct pool_sizes {
    uint32_t class; /* the pool's objects have (class + 1) * POOL_ALIGNMENT bytes */
    uint32_t next; /* offset of the next object that was never used */
    uint32_t most; /* the greatest value that next may have */
};

static bool is_pool(uintptr_t pool)
{
    struct pool_sizes sizes;
    if (!read_live(pool + POOL_OVERHEAD - sizeof sizes, &sizes, sizeof sizes) ||
        sizes.class >= POOL_CLASSES)
        return false;
    uint32_t object = (sizes.class + 1) * POOL_ALIGNMENT;
    return sizes.most == POOL_BYTES - object && sizes.next >= POOL_OVERHEAD + object &&
           sizes.next <= POOL_BYTES && sizes.next % POOL_ALIGNMENT == 0;
}

/* ---- the walk ---- */

#define WINDOW 4096 /* pages that mincore() is asked about at once */

struct walk {
    uintptr_t start, end;
    uintptr_t asked; /* the address of the first page that present tells of */
    unsigned char present[WINDOW];
    bool glibc;
    struct ksmpy_owned *out;
    int64_t max, count;
    struct ksmpy_owned last;
};

static bool is_present(struct walk *walk, uintptr_t at)
{
    if (at < walk->asked || (at - walk->asked) >> PAGE_SHIFT >= WINDOW) {
        uint64_t pages = least((walk->end - at) >> PAGE_SHIFT, WINDOW);
        for (uint64_t i = 0; i < pages; i++)
            walk->present[i] = 0;
        walk->asked = at;
        /* If the memory is not mapped any more this fails, and no page counts as present. */
        mincore((void *)at, bytes_of(pages), walk->present);
    }
    return walk->present[(at - walk->asked) >> PAGE_SHIFT] & 1;
}

/* The first page from that one on that is present, or the end. */
static uintptr_t next_present(struct walk *walk, uintptr_t at)
{
    while (at < walk->end && !is_present(walk, at)) {
        at += PAGE_SIZE;
        if ((at - walk->asked) >> PAGE_SHIFT == WINDOW)
            at = presence_next(at, walk->end);
    }
    return at;
}

/*
 * The size of what malloc has at that page, or 0.  A page that is not present is not read, since to
 * fault it in would cost page tables.
 */
static size_t malloced_at(struct walk *walk, uintptr_t at)
{
    if (!walk->glibc || at == walk->end || !is_present(walk, at))
        return 0;
    size_t bytes = block_at(at, walk->end);
    return bytes ? bytes : heap_at(at, walk->end);
}

/*
 * An arena need not begin with a whole pool.  But where whole arenas from its first pool on end with the
 * mapping, and no block lies behind one that had begun before, what lies before is somebody else's.
 */
static bool begins_with_pool(struct walk *walk, uintptr_t at, uintptr_t pool)
{
    return (walk->end - pool) % ARENA_BYTES == 0 && !malloced_at(walk, at + ARENA_BYTES);
}

/* CPython uses the first whole pool of an arena first: that pool tells whether it is an arena. */
static bool is_arena(struct walk *walk, uintptr_t at)
{
    uintptr_t pool = (at + POOL_BYTES - 1) & -(uintptr_t)POOL_BYTES;
    return at < walk->end && walk->end - at >= ARENA_BYTES && is_present(walk, pool) &&
           is_pool(pool) && (pool == at || !begins_with_pool(walk, at, pool));
}

/* What begins at that page; an empty range if nothing known does. */
static struct ksmpy_owned owned_at(struct walk *walk, uintptr_t at)
{
    size_t bytes = malloced_at(walk, at);
    if (bytes)
        return (struct ksmpy_owned){at, at + bytes, KSMPY_OWNER_MALLOC};
    return (struct ksmpy_owned){at, at + (is_arena(walk, at) ? ARENA_BYTES : 0),
                                KSMPY_OWNER_PYTHON};
}

/* Does something known, or the end of the stretch, adjoin this range? */
static bool has_neighbour(struct walk *walk, uintptr_t start, uintptr_t end)
{
    return end == walk->end || malloced_at(walk, end) || is_arena(walk, end) ||
           (start - walk->start >= ARENA_BYTES && is_arena(walk, start - ARENA_BYTES));
}

/*
 * The next known thing behind memory of unknown owner; an empty range at the end if there is none.
 */
static struct ksmpy_owned next_owned(struct walk *walk, uintptr_t at)
{
    for (; at < walk->end; at += PAGE_SIZE) {
        /* The first page of a block or a heap is present, and that of an arena's first whole pool. */
        uintptr_t there = next_present(walk, at);
        if (there == walk->end)
            break;
        if (there - at >= POOL_BYTES)
            at = there - POOL_BYTES + PAGE_SIZE;
        struct ksmpy_owned found = owned_at(walk, at);
        if (found.end > at &&
            (found.owner == KSMPY_OWNER_PYTHON || has_neighbour(walk, at, found.end)))
            return found;
    }
    return (struct ksmpy_owned){walk->end, walk->end, KSMPY_OWNER_MALLOC};
}

static void put(struct walk *walk)
{
    if (walk->last.end > walk->last.start && walk->count++ < walk->max)
        walk->out[walk->count - 1] = walk->last;
}

static void add(struct walk *walk, const struct ksmpy_owned *found)
{
    if (found->start == walk->last.end && found->owner == walk->last.owner) {
        walk->last.end = found->end;
        return;
    }
    put(walk);
    walk->last = *found;
}

static void walk_through(struct walk *walk)
{
    uintptr_t at = walk->start;
    while (at < walk->end) {
        struct ksmpy_owned found = owned_at(walk, at);
        if (found.end == at)
            found = next_owned(walk, at + PAGE_SIZE);
        if (found.end > found.start)
            add(walk, &found);
        at = found.end;
    }
    put(walk);
}

/* ---- whose malloc it is ---- */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MALLOC_IS_REPLACED true /* the sanitizer's malloc reports reads of a block's header */
#else
#define MALLOC_IS_REPLACED false
#endif
/* glibc maps blocks of this many bytes on their own: its threshold grows to 32 MiB at most. */
#define ASKED_FOR ((size_t)40 << 20)

enum { UNKNOWN, GLIBC, ANOTHER };

/* glibc's malloc is known by the header that lies before what it hands out, and tells its size. */
static bool malloc_is_glibc(void)
{
    static _Atomic int known;
    int answer = atomic_load(&known);
    if (answer != UNKNOWN || MALLOC_IS_REPLACED)
        return answer == GLIBC;
    void *volatile memory = malloc(ASKED_FOR);
    if (!memory)
        return false; /* it is tried again next time */
    struct header header;
    uintptr_t at = (uintptr_t)memory - HEADER;
    bool is = at % PAGE_SIZE == 0 && block_at(at, at + 2 * ASKED_FOR) > ASKED_FOR;
    /* With M_MMAP_MAX 0 glibc maps no blocks on their own: then it is a chunk of a heap. */
    if (!is && read_live(at, &header, sizeof header))
        is = (header.size & ~FLAGS) - (ASKED_FOR + HEADER) < LEAST_CHUNK;
    free(memory);
    atomic_store(&known, is ? GLIBC : ANOTHER);
    return is;
}

int64_t allocators_find(uintptr_t start, uintptr_t end, bool heap, struct ksmpy_owned *out,
                        int64_t max)
{
    struct walk walk = {.start = start, .end = end, .out = out, .max = max};
    walk.glibc = malloc_is_glibc();
    if (!heap)
        walk_through(&walk);
    else if (walk.glibc && main_heap_at(start, end))
        add(&walk, &(struct ksmpy_owned){start, end, KSMPY_OWNER_MALLOC});
    if (heap)
        put(&walk);
    return walk.count;
}
