#include "freeze/moving.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>

#include "base/pages.h"
#include "freeze/freezes.h"
#include "os/apart.h"
#include "os/clock.h"
#include "os/map.h"
#include "os/proc_maps.h"
#include "os/unhooked.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#define KNOWN_FLAGS (MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP)
#define PLACED (MREMAP_FIXED | MREMAP_DONTUNMAP) /* flags with which a new address is given */
#define STORES 1024 /* noted; what is merged on those of more engines is moved by the kernel */

/* The newest ones: the stores of engines that are closed stay until there are so many newer ones. */
static struct {
    _Atomic uint64_t inode, dev;
} stores[STORES];
static _Atomic size_t stores_noted;

/* Two that come at once may note one store twice, which does no harm. */
void moving_know_store(uint64_t inode, uint64_t dev)
{
    size_t last = atomic_load(&stores_noted);
    for (size_t i = 0; i < STORES && i < last; i++)
        if (atomic_load(&stores[i].inode) == inode && atomic_load(&stores[i].dev) == dev)
            return;
    size_t i = atomic_fetch_add(&stores_noted, 1) % STORES;
    atomic_store(&stores[i].inode, inode);
    atomic_store(&stores[i].dev, dev);
}

static bool is_overlay(const struct os_vma *vma)
{
    size_t noted = vma->inode ? atomic_load(&stores_noted) : 0;
    for (size_t i = 0; i < STORES && i < noted; i++)
        if (os_vma_shows(vma, atomic_load(&stores[i].inode), atomic_load(&stores[i].dev)))
            return true;
    return false;
}

struct range {
    uintptr_t at, end; /* at: the end of what was looked at, without a gap */
    bool overlays; /* are there any? */
};

/* Goes on as long as all is memory that its owner reads and writes, an overlay's or of no file. */
static int look(void *data, bool apart)
{
    struct range *range = data;
    struct os_maps maps;
    struct os_vma vma;
    int error = apart ? os_maps_open_anywhere(&maps) : os_maps_open(&maps);
    while (!error && range->at < range->end && os_maps_find(&maps, range->at, &vma) > 0) {
        bool overlay = is_overlay(&vma);
        if (vma.start > range->at || !vma.private_rw || (vma.inode && !overlay))
            break;
        range->overlays |= overlay;
        range->at = vma.end;
    }
    if (!error)
        os_maps_close(&maps);
    return error;
}

/* Is that range such memory, and a part of it merged?  false also where nobody can tell. */
static bool is_merged(uintptr_t from, size_t bytes)
{
    struct range range = {.at = from, .end = from + bytes};
    os_ask(look, &range);
    return range.overlays && range.at >= range.end;
}

/* ---- what is about to move ---- */

#define MOVES 64 /* at once; others may be merged after the look, and are moved as they are then */

/* [start, end); end is 0 where there is none.  A reader sees all of it or none, if it reads the end first. */
static struct move {
    _Atomic bool taken;
    _Atomic uintptr_t start, end;
} moves[MOVES];

static struct move *note(uintptr_t from, size_t bytes)
{
    for (size_t i = 0; i < MOVES; i++) {
        if (atomic_exchange(&moves[i].taken, true))
            continue;
        atomic_store(&moves[i].start, from);
        atomic_store(&moves[i].end, from + bytes);
        return &moves[i];
    }
    return NULL;
}

static void forget(struct move *move)
{
    if (!move)
        return;
    atomic_store(&move->end, 0);
    atomic_store(&move->taken, false);
}

bool moving_meets(uintptr_t address, uint64_t n)
{
    for (size_t i = 0; i < MOVES; i++) {
        uintptr_t end = atomic_load(&moves[i].end);
        if (meet(address, address + bytes_of(n), atomic_load(&moves[i].start), end))
            return true;
    }
    return false;
}

void moving_forget_all(void)
{
    for (size_t i = 0; i < MOVES; i++)
        forget(&moves[i]);
}

/* ---- moving ---- */

/* Are these arguments for memory that moves, or could, and none that the kernel refuses? */
static bool may_move(uintptr_t from, size_t before, size_t after, int flags, uintptr_t to)
{
    bool fixed = flags & MREMAP_FIXED, stays = flags & MREMAP_DONTUNMAP;
    if (flags & ~KNOWN_FLAGS || from % PAGE_SIZE || !before || !after)
        return false;
    if (from + before < from || to + after < to)
        return false;
    if (fixed && (to % PAGE_SIZE || (to < from + before && from < to + after)))
        return false;
    if (flags & PLACED)
        return flags & MREMAP_MAYMOVE && (!stays || before == after);
    return after > before;
}

static void copy(uint8_t *to, const uint8_t *from, size_t bytes)
{
    static const uint8_t zeros[PAGE_SIZE];
    for (size_t at = 0; at < bytes; at += PAGE_SIZE)
        if (memcmp(from + at, zeros, PAGE_SIZE) != 0)
            memcpy(to + at, from + at, PAGE_SIZE);
}

/* What was there is gone; with MREMAP_DONTUNMAP there is empty memory then. */
static int leave(uint8_t *from, size_t bytes, int flags)
{
    if (!(flags & MREMAP_DONTUNMAP))
        return os_munmap(from, bytes);
    return os_map_anonymous((uintptr_t)from, bytes / PAGE_SIZE, 0);
}

static void *map_empty(void *hint, size_t bytes)
{
    return os_mmap(hint, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void *give_up(uint8_t *place, size_t bytes)
{
    int error = errno;
    os_munmap(place, bytes);
    errno = error;
    return MAP_FAILED;
}

/*
 * A part at a time, so that no more than that is there twice.  Only the first part that is left may
 * split a mapping, and be refused for that.
 */
static void *move(uint8_t *from, size_t before, size_t after, int flags, void *to)
{
    const size_t part = bytes_of(HUGE_PAGES);
    uint8_t *place = map_empty(to, after);
    if (place == MAP_FAILED)
        return MAP_FAILED;
    for (size_t at = 0; at < before; at += part) {
        size_t bytes = least(before - at, part);
        if (at < after)
            copy(place + at, from + at, least(bytes, after - at));
        if (leave(from + at, bytes, flags) != 0 && at == 0)
            return give_up(place, after);
    }
    return place;
}

/*
 * To a place that others may be reading, as who exchanges what is there in one step means them to: it comes
 * there by the kernel, when all of it is there.
 */
static void *move_onto(uint8_t *from, size_t before, size_t after, int flags, void *to)
{
    uint8_t *place = map_empty(NULL, after);
    if (place == MAP_FAILED)
        return MAP_FAILED;
    copy(place, from, least(before, after));
    if (os_mremap(place, after, after, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED)
        return give_up(place, after);
    return leave(from, before, flags) == 0 ? to : MAP_FAILED;
}

static size_t whole_pages(size_t bytes)
{
    return (bytes + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
}

static void *move_merged(uint8_t *from, size_t before, size_t after, int flags, void *to)
{
    if (flags & MREMAP_FIXED)
        return move_onto(from, before, after, flags, to);
    if (flags & MREMAP_MAYMOVE)
        return move(from, before, after, flags, to);
    errno = ENOMEM; /* as where there is no room behind it */
    return MAP_FAILED;
}

/* The wait is no place to be cancelled at, as mremap() is none. */
void *moving_mremap(void *from, size_t before, size_t after, int flags, ...)
{
    size_t old = whole_pages(before), new = whole_pages(after);
    void *to = NULL;
    if (flags & PLACED) {
        va_list more;
        va_start(more, flags);
        to = va_arg(more, void *);
        va_end(more);
    }
    if (!may_move((uintptr_t)from, old, new, flags, (uintptr_t)to))
        return mremap(from, before, after, flags, to);
    int error = errno, cancelled;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancelled);
    struct move *noted = note((uintptr_t)from, old);
    freezes_wait(os_now_ns());
    bool merged = is_merged((uintptr_t)from, old);
    errno = error;
    void *got =
        merged ? move_merged(from, old, new, flags, to) : mremap(from, before, after, flags, to);
    forget(noted);
    pthread_setcancelstate(cancelled, NULL);
    return got;
}
