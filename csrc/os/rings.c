/*
 * libuv has a ring in each of its loops, by which it makes many calls of epoll_ctl(2) in one, so
 * every program with uvloop has one.  Such a call writes nothing into the program's memory.
 *
 * The kernel does not tell what a ring was used for, but the entries in which requests are written
 * down stay as they were until they are used again, and whoever has the descriptor can map them.  A
 * ring is harmless if they have held nothing else, and no thread of the kernel's takes them.  What
 * the program asks of it for the first time later is seen at the next look, as is a ring that it
 * makes later.
 */
#include "os/rings.h"

#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/pages.h"
#include "os/files.h"
#include "os/guard.h"
#include "os/unhooked.h"

#define OFFSET_OF_ENTRIES 0x10000000L /* IORING_OFF_SQES */
#define ENTRY 64 /* bytes; the first one is the request's kind */
#define NOTHING 0 /* IORING_OP_NOP, and what an entry holds that was not used yet */
#define EPOLL_CTL 29 /* IORING_OP_EPOLL_CTL */
#define MOST_ENTRIES 4096 /* to be looked at; libuv's have 256 */

/* The number behind a name, as "SqMask:\t0xff"; false: it is not there. */
static bool find(const char *text, const char *name, long *number)
{
    const char *at = strstr(text, name);
    if (at)
        *number = strtol(at + strlen(name), NULL, 0);
    return at;
}

/* How many entries a ring has; 0: nobody can tell, a thread takes them, or it has pinned memory. */
static size_t count_entries(const char *descriptor)
{
    char path[48], text[1024];
    long mask, thread, pinned;
    snprintf(path, sizeof path, "/proc/thread-self/fdinfo/%.16s", descriptor);
    int fd = os_open_briefly(AT_FDCWD, path);
    if (fd < 0)
        return 0;
    ssize_t got = read(fd, text, sizeof text - 1);
    os_close_brief(fd);
    text[got > 0 ? got : 0] = 0;
    bool told = find(text, "SqMask:", &mask) && find(text, "SqThread:", &thread) &&
                find(text, "UserBufs:", &pinned);
    bool simple = told && thread == -1 && pinned == 0 && mask >= 0 && mask < MOST_ENTRIES;
    return simple ? (size_t)mask + 1 : 0;
}

static bool is_epoll_only(const uint8_t *entries, size_t count)
{
    bool used = false;
    for (size_t i = 0; i < count; i++) {
        uint8_t kind;
        if (!guard_copy(&kind, entries + i * ENTRY, 1) || (kind != NOTHING && kind != EPOLL_CTL))
            return false;
        used |= kind == EPOLL_CTL;
    }
    return used;
}

/* To touch what is not there is a fault. */
static bool is_there(uintptr_t address)
{
    return guard_touch(address, address + 1, 1);
}

static void *map_entries(int ring, size_t size)
{
    void *entries = os_mmap(NULL, size, PROT_READ, MAP_SHARED, ring, OFFSET_OF_ENTRIES);
    return entries == MAP_FAILED ? NULL : entries;
}

/*
 * A ring whose entries are twice as large (IORING_SETUP_SQE128) has memory behind so many of this
 * size.  So a page more is asked for: some kernels map it, although there may be nothing behind it,
 * and others refuse it if there is nothing.
 */
static bool look(int ring, size_t count)
{
    size_t size = (count * ENTRY + PAGE_SIZE - 1) & ~(size_t)(PAGE_SIZE - 1);
    void *more = map_entries(ring, size + PAGE_SIZE);
    void *entries = more ? more : map_entries(ring, size);
    if (!entries)
        return false;
    bool larger = more && is_there((uintptr_t)more + size);
    bool only = !larger && is_epoll_only(entries, count);
    os_munmap(entries, more ? size + PAGE_SIZE : size);
    return only;
}

bool os_ring_tells_epoll_only(const char *descriptor)
{
    size_t count = count_entries(descriptor);
    if (!count)
        return false;
    sigset_t mask;
    guard_open(&mask);
    bool only = look((int)strtol(descriptor, NULL, 10), count);
    guard_close(&mask);
    return only;
}
