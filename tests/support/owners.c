/*
 * Owners that do to their memory whatever the kernel lets them do, while it is merged.
 *
 * Each thread owns some blocks, all of which begin with the same bytes, and for
 * each a shadow: what the block has to hold, in memory that nobody merges.
 * It unmaps, maps over, moves, grows, shrinks, protects, locks, advises and
 * rewrites parts of a block, and compares it with its shadow.  Strangers map and
 * unmap memory of the same sizes, and so get addresses that were blocks a
 * moment ago; they expect zeros in it, and then what they wrote.
 *
 * Some of that can come in the moment in which the engine exchanges a page, after it has asked
 * whose it is: the page has the bytes that lay at its address before, all of them.  Such a page is
 * not wrong but late: it is counted and mended, if its owner did that less than LATE ago.  Zeros are
 * so only where something was mapped anew.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

enum {
    PAGE = 4096,
    WORDS = PAGE / 8,
    MAX_THREADS = 8,
    BLOCKS = 4,
    PAGES = 320,
    NAMES = 32,
    MAX_CHANGED = 96,
    MOST_LATE = 8 /* one in so many of those that were given up, and a block's */
};
#define LATE 500000000ULL /* ns: so long may a thread on a busy machine stand still */

struct header {
    uint64_t before, size; /* glibc's, right before the memory; size has flags in its lowest bits */
};

struct block {
    _Atomic uintptr_t address; /* 0: there is none at the moment */
    _Atomic uint64_t pages;
    uint8_t *memory, *shadow;
    uint64_t given_up[PAGES], mapped[PAGES]; /* when that was, in ns */
    uint64_t shrunk;
    int heap;
    struct header header; /* of malloc's, as it was at first */
};

struct owner {
    pthread_t thread;
    struct owners *owners;
    uint64_t random;
    struct block blocks[BLOCKS];
    uint64_t done[NAMES];
    uint64_t verified, given_up, late, grown;
    char complaint[256];
};

struct owners {
    _Atomic int stop;
    uint32_t threads, strangers;
    uint32_t gives_back; /* MADV_DONTNEED and MADV_FREE are among what is done */
    uint32_t moves; /* and so is mremap */
    struct owner owner[MAX_THREADS];
};

static uint64_t next_random(struct owner *o)
{
    o->random = o->random * 6364136223846793005ULL + 1442695040888963407ULL;
    return o->random >> 33;
}

static uint64_t below(struct owner *o, uint64_t n)
{
    return n ? next_random(o) % n : 0;
}

/* Bytes of a page by its place: the same in every block. */
static void fill(uint8_t *page, uint64_t place)
{
    uint64_t *words = (uint64_t *)(void *)page;
    for (uint64_t i = 0; i < WORDS; i++)
        words[i] = (place + 1) * 0x9e3779b97f4a7c15ULL ^ i * 0xff51afd7ed558ccdULL;
}

static void complain(struct owner *o, const char *what, const uint8_t *at, uint64_t got,
                     uint64_t want)
{
    if (!o->complaint[0])
        snprintf(o->complaint, sizeof o->complaint, "%s: at %p is %016llx, should be %016llx", what,
                 (const void *)at, (unsigned long long)got, (unsigned long long)want);
    atomic_store(&o->owners->stop, 1);
}

static void verify(struct owner *o, const char *what, const uint8_t *memory, const uint8_t *shadow,
                   uint64_t pages)
{
    o->verified += pages;
    if (memcmp(memory, shadow, pages * PAGE) == 0)
        return;
    const uint64_t *a = (const uint64_t *)(const void *)memory;
    const uint64_t *b = (const uint64_t *)(const void *)shadow;
    for (uint64_t i = 0; i < pages * WORDS; i++)
        if (a[i] != b[i]) {
            complain(o, what, memory + i * 8, a[i], b[i]);
            return;
        }
    complain(o, "wrong for a moment only", memory, 0, 0);
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000ULL + (uint64_t)time.tv_nsec;
}

/* Zeros from now on. */
static void give_up(struct owner *o, struct block *b, uint64_t first, uint64_t n)
{
    o->given_up += n;
    for (uint64_t i = first; i < first + n; i++)
        b->given_up[i] = now();
    memset(b->shadow + first * PAGE, 0, n * PAGE);
}

static void begin_anew(struct owner *o, struct block *b, uint64_t first, uint64_t n)
{
    give_up(o, b, first, n);
    for (uint64_t i = first; i < first + n; i++)
        b->mapped[i] = now();
}

/* Most words of a page are still those that it began with. */
static int began_as(const uint8_t *page, const uint8_t *first)
{
    int changed = 0;
    for (uint64_t i = 0; i < WORDS && changed < MAX_CHANGED; i++)
        changed += memcmp(page + i * 8, first + i * 8, 8) != 0;
    return changed < MAX_CHANGED;
}

static const uint8_t zeros[PAGE];

/* A block began with its own bytes, and what was given up of it with zeros, before it was written. */
static int was_a_block(const uint8_t *page)
{
    uint8_t first[PAGE];
    if (began_as(page, zeros))
        return memcmp(page, zeros, PAGE) != 0;
    for (uint64_t place = 0; place < PAGES; place++) {
        fill(first, place);
        if (began_as(page, first))
            return 1;
    }
    return 0;
}

static int was_there(const uint8_t *page, uint64_t given_up, uint64_t mapped)
{
    return (now() - mapped < LATE && memcmp(page, zeros, PAGE) == 0) ||
           ((now() - mapped < LATE || now() - given_up < LATE) && was_a_block(page));
}

static int is_late(const struct block *b, uint64_t i, const uint8_t *page)
{
    return was_there(page, b->given_up[i], b->mapped[i]);
}

/* Pages [first, +n) of a block, which are at that address; late ones are mended where they may be. */
static void verify_block(struct owner *o, const char *what, struct block *b, uint8_t *memory,
                         uint64_t first, uint64_t n, int mend)
{
    const uint8_t *shadow = b->shadow + first * PAGE;
    o->verified += n;
    if (memcmp(memory, shadow, n * PAGE) == 0)
        return;
    for (uint64_t i = 0; i < n; i++) {
        if (memcmp(memory + i * PAGE, shadow + i * PAGE, PAGE) == 0)
            continue;
        if (!is_late(b, first + i, memory + i * PAGE)) {
            verify(o, what, memory + i * PAGE, shadow + i * PAGE, 1);
            continue;
        }
        o->late += (uint64_t)mend;
        if (mend)
            memcpy(memory + i * PAGE, shadow + i * PAGE, PAGE);
    }
}

/*
 * What malloc() has noted of a block lies in a page that was somebody's memory before, too, and so
 * may be late like any other.  While the block lives, only the lowest flag may change.
 */
static void verify_header(struct owner *o, struct block *b)
{
    const uint8_t *page = b->memory - PAGE;
    struct header *header = (struct header *)(void *)b->memory - 1;
    uint64_t changed = (header->size ^ b->header.size) & ~(uint64_t)1;
    if (b->header.size & 2) /* a mapping of its own */
        changed |= header->before ^ b->header.before;
    if (!changed)
        return;
    if (!was_there(page, b->mapped[0], b->mapped[0]))
        complain(o, "malloc's own header", (uint8_t *)header, header->size, b->header.size);
    o->late++;
    *header = b->header;
}

static uint8_t *map(uint64_t pages, void *hint, int more)
{
    void *got =
        mmap(hint, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | more, -1, 0);
    return got == MAP_FAILED ? NULL : got;
}

static void fill_block(struct block *b, uint64_t first, uint64_t end)
{
    for (uint64_t i = first; i < end; i++) {
        fill(b->shadow + i * PAGE, i);
        memcpy(b->memory + i * PAGE, b->shadow + i * PAGE, PAGE);
    }
}

static void open_block(struct owner *o, struct block *b)
{
    uint64_t pages = PAGES / 4 + below(o, PAGES / 4);
    b->heap = below(o, 4) == 0;
    b->memory = b->heap ? aligned_alloc(PAGE, pages * PAGE) : map(pages, NULL, 0);
    if (!b->memory)
        return;
    for (uint64_t i = 0; i < PAGES; i++)
        b->given_up[i] = b->mapped[i] = now();
    b->shrunk = 0;
    if (b->heap)
        b->header = ((struct header *)(void *)b->memory)[-1];
    fill_block(b, 0, pages);
    atomic_store(&b->pages, pages);
    atomic_store(&b->address, (uintptr_t)b->memory);
}

static void close_block(struct block *b)
{
    atomic_store(&b->address, 0);
    if (b->heap)
        free(b->memory);
    else
        munmap(b->memory, b->pages * PAGE);
    b->memory = NULL;
}

/* ---- what is done to pages [first, +n) of a block ---- */

typedef void act(struct owner *o, struct block *b, uint64_t first, uint64_t n);

static void write_words(struct owner *o, struct block *b, uint64_t first, uint64_t n)
{
    for (uint64_t i = 0; i < 8; i++) {
        uint64_t at = (first + below(o, n)) * WORDS + below(o, WORDS);
        volatile uint64_t *word = (volatile uint64_t *)(void *)b->memory + at;
        uint64_t *shadow = (uint64_t *)(void *)b->shadow + at;
        if (*word != *shadow)
            verify_block(o, "before a write", b, b->memory + at / WORDS * PAGE, at / WORDS, 1, 1);
        *word = *shadow = *shadow + 1;
    }
}

static void make_equal(struct owner *o, struct block *b, uint64_t first, uint64_t n)
{
    (void)o;
    fill_block(b, first, first + n);
}

static void give_back(struct owner *o, struct block *b, uint64_t first, uint64_t n)
{
    if (!o->owners->gives_back || madvise(b->memory + first * PAGE, n * PAGE, MADV_DONTNEED))
        return;
    give_up(o, b, first, n);
}

/* Each page keeps its bytes or is zero, until it is written. */
static void give_back_later(struct owner *o, struct block *b, uint64_t first, uint64_t n)
{
    if (!o->owners->gives_back || madvise(b->memory + first * PAGE, n * PAGE, MADV_FREE))
        return;
    for (uint64_t i = first; i < first + n; i++) {
        volatile uint8_t *page = b->memory + i * PAGE;
        *page = *page; /* from now on it stays */
        if (memcmp(b->memory + i * PAGE, zeros, PAGE) == 0)
            give_up(o, b, i, 1);
        verify_block(o, "after MADV_FREE", b, b->memory + i * PAGE, i, 1, 1);
    }
}

static void advise(struct owner *o, struct block *b, uint64_t first, uint64_t n)
{
    static const int kinds[] = {MADV_REMOVE,     MADV_COLLAPSE,   MADV_DONTFORK, MADV_DOFORK,
                                MADV_HUGEPAGE,   MADV_NOHUGEPAGE, MADV_COLD,     MADV_WILLNEED,
                                MADV_SEQUENTIAL, MADV_NORMAL};
    madvise(b->memory + first * PAGE, n * PAGE, kinds[below(o, sizeof kinds / sizeof kinds[0])]);
}

static void protect(struct owner *o, struct block *b, uint64_t first, uint64_t n)
{
    uint8_t *at = b->memory + first * PAGE;
    int rights = below(o, 2) ? PROT_READ : PROT_NONE;
    if (mprotect(at, n * PAGE, rights))
        return;
    if (below(o, 2))
        usleep((unsigned)below(o, 1000));
    if (rights == PROT_READ)
        verify_block(o, "read-only", b, at, first, n, 0);
    while (mprotect(at, n * PAGE, PROT_READ | PROT_WRITE))
        ;
}

static void lock(struct owner *o, struct block *b, uint64_t first, uint64_t n)
{
    (void)o;
    n = n > 4 ? 4 : n;
    if (mlock(b->memory + first * PAGE, n * PAGE) == 0)
        munlock(b->memory + first * PAGE, n * PAGE);
}

static void map_over(struct owner *o, struct block *b, uint64_t first, uint64_t n)
{
    if (!b->heap && map(n, b->memory + first * PAGE, MAP_FIXED))
        begin_anew(o, b, first, n);
}

/*
 * A block that has shrunk ends in what was the middle of a region, where an overlay may grow with
 * it, until the next pass has seen that: it shows other frames then.
 */
static void expect_growth(struct owner *o, struct block *b, uint64_t pages, uint64_t target)
{
    memset(b->shadow + pages * PAGE, 0, (target - pages) * PAGE);
    for (uint64_t i = pages; i < target; i++) {
        if (now() - b->shrunk > LATE ||
            memcmp(b->memory + i * PAGE, b->shadow + i * PAGE, PAGE) == 0)
            continue;
        memset(b->memory + i * PAGE, 0, PAGE);
        o->grown++;
    }
}

/* To another place, where the block goes on. */
static void move(struct owner *o, struct block *b, uint64_t first, uint64_t n)
{
    (void)first, (void)n;
    uint64_t pages = b->pages, target = pages / 2 + below(o, pages);
    uint64_t limit = PAGES;
    if (b->heap || !o->owners->moves)
        return;
    target = target > limit ? limit : target ? target : 1;
    atomic_store(&b->address, 0);
    uint8_t *old = b->memory;
    void *got = mremap(old, pages * PAGE, target * PAGE, MREMAP_MAYMOVE);
    if (got != MAP_FAILED) {
        b->memory = got;
        if (target > pages)
            expect_growth(o, b, pages, target);
        else if (target < pages)
            b->shrunk = now();
        pages = target;
    }
    verify_block(o, "after mremap", b, b->memory, 0, pages, 1);
    atomic_store(&b->pages, pages);
    atomic_store(&b->address, (uintptr_t)b->memory);
}

/* A range of several mappings is not moved; Linux 6.18 may have moved the first ones by then. */
static void bring_back(const uint8_t *place, uint8_t *at, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (memcmp(place + i * PAGE, zeros, PAGE) != 0)
            memcpy(at + i * PAGE, place + i * PAGE, PAGE);
}

static void move_a_part(struct owner *o, struct block *b, uint64_t first, uint64_t n)
{
    bool movable = o->owners->moves && !b->heap;
    uint8_t *at = b->memory + first * PAGE, *place = movable ? map(n, NULL, 0) : NULL;
    if (!place)
        return;
    if (mremap(at, n * PAGE, n * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, place) ==
        MAP_FAILED) {
        bring_back(place, at, n);
        munmap(place, n * PAGE);
        return;
    }
    verify_block(o, "a part that was moved", b, place, first, n, 1);
    if (mremap(place, n * PAGE, n * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at) != MAP_FAILED)
        return;
    while (!map(n, at, MAP_FIXED)) /* a part of the place may be another's by now: it is left */
        ;
    memcpy(at, b->shadow + first * PAGE, n * PAGE);
}

static void anew(struct owner *o, struct block *b, uint64_t first, uint64_t n)
{
    (void)first, (void)n;
    close_block(b);
    if (below(o, 8) == 0)
        malloc_trim(0);
    open_block(o, b);
}

static void cut(struct owner *o, struct block *b, uint64_t first, uint64_t n)
{
    if (b->heap)
        return;
    munmap(b->memory + first * PAGE, n * PAGE);
    if (map(n, b->memory + first * PAGE, MAP_FIXED_NOREPLACE)) {
        begin_anew(o, b, first, n);
        return;
    }
    atomic_store(&b->address, 0); /* a stranger has it: the rest goes as well */
    munmap(b->memory, first * PAGE);
    munmap(b->memory + (first + n) * PAGE, (b->pages - first - n) * PAGE);
    b->memory = NULL;
    open_block(o, b);
}

static const struct action {
    const char *name;
    act *act;
    unsigned weight;
} actions[] = {
    {"writes", write_words, 8}, {"refills", make_equal, 8},
    {"dontneed", give_back, 4}, {"free", give_back_later, 1},
    {"advice", advise, 4},      {"protect", protect, 2},
    {"mlock", lock, 1},         {"map over", map_over, 2},
    {"mremap", move, 2},        {"move a part", move_a_part, 2},
    {"anew", anew, 2},          {"cut", cut, 2},
};
enum { ACTIONS = sizeof actions / sizeof actions[0] };

static int choose(struct owner *o)
{
    unsigned total = 0;
    for (int i = 0; i < ACTIONS; i++)
        total += actions[i].weight;
    uint64_t at = below(o, total);
    for (int i = 0; i < ACTIONS; i++) {
        if (at < actions[i].weight)
            return i;
        at -= actions[i].weight;
    }
    return 0;
}

static void *own(void *argument)
{
    struct owner *o = argument;
    while (!atomic_load(&o->owners->stop)) {
        struct block *b = &o->blocks[below(o, BLOCKS)];
        if (!b->memory) {
            open_block(o, b);
            continue;
        }
        uint64_t pages = b->pages, first = below(o, 3) ? below(o, pages) : 0;
        uint64_t n = below(o, 3) ? 1 + below(o, pages - first) : pages - first;
        int action = choose(o);
        if (b->heap)
            verify_header(o, b);
        actions[action].act(o, b, first, n);
        o->done[action]++;
        if (b->memory)
            verify_block(o, actions[action].name, b, b->memory, 0, b->pages, 1);
        if (b->memory && b->heap)
            verify_header(o, b);
        if (below(o, 4) == 0)
            usleep((unsigned)below(o, 2000));
    }
    return NULL;
}

static void verify_fresh(struct owner *o, const char *what, const uint8_t *page,
                         const uint8_t *want, uint64_t since)
{
    if (memcmp(page, want, PAGE) != 0 && was_there(page, since, since))
        o->late++;
    else
        verify(o, what, page, want, 1);
}

/* Not registered; some of it was a moment ago. */
static void *stray(void *argument)
{
    struct owner *o = argument;
    uint8_t page[PAGE];
    while (!atomic_load(&o->owners->stop)) {
        uint64_t pages = PAGES / 8 + below(o, PAGES / 2), mark = next_random(o);
        uint8_t *memory = map(pages, NULL, 0);
        uint64_t since = now();
        if (!memory)
            continue;
        for (uint64_t i = 0; i < pages; i++) {
            fill(page, mark + i);
            verify_fresh(o, "a stranger's fresh memory", memory + i * PAGE, zeros, since);
            memcpy(memory + i * PAGE, page, PAGE);
        }
        usleep((unsigned)below(o, 500));
        for (uint64_t i = 0; i < pages; i++) {
            fill(page, mark + i);
            verify_fresh(o, "a stranger's memory", memory + i * PAGE, page, since);
        }
        munmap(memory, pages * PAGE);
        o->done[0]++;
    }
    return NULL;
}

/* ---- from outside ---- */

struct owners *owners_new(uint32_t threads, uint32_t strangers, uint32_t gives_back, uint32_t moves,
                          uint64_t seed)
{
    struct owners *owners =
        mmap(NULL, sizeof *owners, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (owners == MAP_FAILED || threads + strangers > MAX_THREADS)
        return NULL;
    owners->threads = threads;
    owners->strangers = strangers;
    owners->gives_back = gives_back;
    owners->moves = moves;
    for (uint32_t i = 0; i < threads + strangers; i++) {
        struct owner *o = &owners->owner[i];
        o->owners = owners;
        o->random = (seed + 1) * 0x9e3779b97f4a7c15ULL + i * 0xff51afd7ed558ccdULL;
        for (int k = 0; k < BLOCKS && i < threads; k++) {
            o->blocks[k].shadow = map(PAGES, NULL, 0);
            if (!o->blocks[k].shadow)
                return NULL;
        }
        if (pthread_create(&o->thread, NULL, i < threads ? own : stray, o))
            return NULL;
    }
    return owners;
}

/* Where the blocks are now: up to max pairs of address and pages. */
uint32_t owners_blocks(struct owners *owners, uint64_t *out, uint32_t max)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < owners->threads; i++)
        for (int k = 0; k < BLOCKS && count < max; k++) {
            struct block *b = &owners->owner[i].blocks[k];
            uintptr_t address = atomic_load(&b->address);
            if (!address)
                continue;
            out[2 * count] = address;
            out[2 * count++ + 1] = atomic_load(&b->pages);
        }
    return count;
}

int owners_failed(struct owners *owners)
{
    return atomic_load(&owners->stop);
}

/* Ends the threads; the first complaint, or an empty text, and what was done. */
void owners_end(struct owners *owners, char *complaint, char *diary, size_t size)
{
    uint64_t done[ACTIONS] = {0}, verified = 0, strangers = 0, given_up = 0, late = 0, grown = 0;
    atomic_store(&owners->stop, 1);
    complaint[0] = diary[0] = 0;
    for (uint32_t i = 0; i < owners->threads + owners->strangers; i++) {
        struct owner *o = &owners->owner[i];
        pthread_join(o->thread, NULL);
        if (o->complaint[0] && !complaint[0])
            snprintf(complaint, size, "%s", o->complaint);
        verified += o->verified;
        given_up += o->given_up;
        late += o->late;
        grown += o->grown;
        for (int k = 0; k < ACTIONS && i < owners->threads; k++)
            done[k] += o->done[k];
        strangers += i >= owners->threads ? o->done[0] : 0;
    }
    if (late * MOST_LATE > given_up + MOST_LATE * PAGES && !complaint[0])
        snprintf(complaint, size, "%llu pages were late", (unsigned long long)late);
    size_t at = (size_t)snprintf(
        diary, size, "%llu pages verified, %llu given up, %llu late, %llu grown, %llu strangers",
        (unsigned long long)verified, (unsigned long long)given_up, (unsigned long long)late,
        (unsigned long long)grown, (unsigned long long)strangers);
    for (int k = 0; k < ACTIONS && at < size; k++)
        at += (size_t)snprintf(diary + at, size - at, ", %llu %s", (unsigned long long)done[k],
                               actions[k].name);
}

/* When nobody merges any more. */
void owners_free(struct owners *owners)
{
    for (uint32_t i = 0; i < owners->threads; i++)
        for (int k = 0; k < BLOCKS; k++) {
            struct block *b = &owners->owner[i].blocks[k];
            if (b->memory)
                close_block(b);
            munmap(b->shadow, (size_t)PAGES * PAGE);
        }
    munmap(owners, sizeof *owners);
}
