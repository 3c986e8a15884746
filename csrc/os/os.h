/*
 * Everything the engine asks of the operating system.  The files os_*.c are
 * the only ones with system calls, and the contract is:
 *
 *  - A function returns 0 or a count on success and a negative errno on
 *    failure; it never prints, never exits, and never retries for ever.
 *  - Nothing here allocates from malloc's heap: a caller may hold a page range
 *    frozen that a thread inside malloc is waiting for.
 *  - Addresses are page aligned, lengths are in pages (n) unless named bytes.
 *  - Every descriptor is close-on-exec.
 */
#ifndef KSMPY_OS_H
#define KSMPY_OS_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ksmpy.h"

#define PAGE_SHIFT 12
#define PAGE_SIZE ((size_t)1 << PAGE_SHIFT)

#define FAULT_AROUND 16 /* pages of a file that the kernel maps at one fault */

#define HUGE_PAGES                                                                                 \
    ((uint64_t)512) /* pages of a transparent huge page, which is aligned to its size */

static inline uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline size_t bytes_of(uint64_t pages)
{
    return (size_t)pages << PAGE_SHIFT;
}

static inline uint8_t *page_at(uintptr_t address, uint64_t page)
{
    return (uint8_t *)address + bytes_of(page);
}

/* ---- userfaultfd (os/uffd.c) ---- */

enum os_uffd_feature {
    OS_UFFD_MOVE = 1,
    OS_UFFD_WP_ASYNC = 2,   /* write protection that the kernel lifts by itself */
    OS_UFFD_WP_SYNC = 4,    /* write protection that blocks, also on shmem mappings */
};

enum os_uffd_mode { OS_UFFD_MISSING = 1, OS_UFFD_WP = 2 };

enum os_uffd_event { OS_UFFD_NOTHING, OS_UFFD_FAULT, OS_UFFD_OTHER };

/*
 * A new userfaultfd, or -errno.  *kernel_mode tells whether it also handles faults in system
 * calls.
 */
int os_uffd_open(int features, bool *kernel_mode);
int os_uffd_register(int fd, uintptr_t address, uint64_t n, int mode);
int os_uffd_unregister(int fd, uintptr_t address, uint64_t n);
/* Moves pages; returns how many of the leading ones were moved, or -errno when none was. */
int64_t os_uffd_move(int fd, uintptr_t to, uintptr_t from, uint64_t n);
int64_t os_uffd_copy(int fd, uintptr_t to, const void *from, uint64_t n);
int64_t os_uffd_zero(int fd, uintptr_t address, uint64_t n);
int os_uffd_wake(int fd, uintptr_t address, uint64_t n);
int os_uffd_protect(int fd, uintptr_t address, uint64_t n, bool on);
/* Is the range one mapping that is registered, with whatever descriptor? Changes nothing. */
bool os_uffd_is_registered(int fd, uintptr_t address, uint64_t n);
/* The next message, without waiting; for OS_UFFD_FAULT *address is the faulting page. */
int os_uffd_read(int fd, uintptr_t *address);

/* ---- mappings (os/map.c, os/own.c) ---- */

/* Address space that costs nothing until it is committed; NULL when there is none. */
void *os_reserve(size_t bytes);
int os_commit(void *address, size_t bytes);
void os_unmap(void *address, size_t bytes);
int os_dont_fork(void *address, size_t bytes);
void os_dont_dump(void *address, size_t bytes); /* into a core */
/*
 * Core dumps of this process, and of those that come of it, hold private mappings of files too, if
 * they hold private memory: overlays are such (core(5), coredump_filter).
 */
void os_dump_overlays(void);
void os_do_fork(void *address, size_t bytes); /* again */
/*
 * Memory of the engine's own, as ksmpy_own_memory() tells.  What the functions here map is noted
 * by them.
 */
void os_own(uintptr_t start, size_t bytes);
void os_disown(uintptr_t start, size_t bytes);
/* Zero-filled private memory, NULL when out of it. */
void *os_alloc(size_t bytes);

/* The same for HUGE_PAGES pages, aligned as a huge page is. */
void *os_alloc_huge(void);

/* Replaces whatever is mapped by frames of the store, copy-on-write. */
int os_map_frames(uintptr_t address, uint64_t n, int memfd, uint64_t offset);
/*
 * Replaces whatever is mapped by fresh anonymous memory with the same flags (enum ksmpy_vma_flag).
 */
int os_map_anonymous(uintptr_t address, uint64_t n, int vma_flags);
/* Fresh memory at an address, only if nothing is there. */
int os_map_at(uintptr_t address, uint64_t n);
/* The same, to be committed. */
int os_claim(uintptr_t address, uint64_t n);
/*
 * Would the limits on address space and commitment allow n pages more?  mremap
 * asks that only after it has unmapped its target.
 */
bool os_can_map(uint64_t n);
bool os_is_mapped(uintptr_t page);
/* Is all that is mapped from now on to be filled at once, and stay in memory (MCL_FUTURE)? */
bool os_locks_new_memory(void);
/* Does address space that is never touched count against a limit of the program's? */
bool os_is_rationed(void);
int os_set_vma_flags(uintptr_t address, uint64_t n, int vma_flags);
/* Untouched memory after the one page at from, n in all; where it is then, or 0. */
uintptr_t os_grow(uintptr_t from, uint64_t n);
/* mremap onto an address, replacing what is there; keep: the old mapping stays, empty. */
int os_remap(uintptr_t to, uintptr_t from, uint64_t n, bool keep);
int os_protect(uintptr_t address, uint64_t n, bool writable);
/* MADV_DONTNEED, also of memory that mlockall() has locked: then that lock ends. */
int os_drop(uintptr_t address, uint64_t n);
/* Pages of a file leave our page tables; touched again, they come back. No harm if that fails. */
void os_look_away(uintptr_t address, uint64_t n);
/* MADV_DONTNEED of the owner's memory: -EINVAL where it is locked. */
int os_empty(uintptr_t address, uint64_t n);
/* Faults a range in, for reading or (breaking copy-on-write) for writing. */
int os_populate(uintptr_t address, uint64_t n, bool write);
/* Parts the pages from others that they are one folio with, where the kernel can do so. */
void os_split(uintptr_t address, uint64_t n);

int os_memfd(const char *name, size_t bytes);
/*
 * To be read later, a part at a time (os_protect). mlockall() and core dumps would read all of it,
 * and so fill the file.
 */
void *os_map_hidden(int fd, uint64_t offset, size_t bytes);
void *os_map_shared(int fd, uint64_t offset, size_t bytes, bool writable);
/* Another description of the same file: its locks and its rights are its own. */
int os_reopen(int fd, int flags);
/*
 * No change of size, and nobody can open it for writing again. A read-only descriptor of it, or
 * -errno.
 */
int os_seal(int memfd);
/*
 * Copies memory into a file; how many leading pages, or -errno when none. The memory may be live.
 */
int64_t os_write(int fd, uint64_t offset, const void *from, uint64_t n);
/* Memory for a part of a file now, so that touching it cannot fail; -ENOSPC. */
int os_allocate(int fd, uint64_t offset, uint64_t bytes);
/* Gives the memory under a part of a file back to the system. */
int os_punch(int fd, uint64_t offset, uint64_t bytes);
/* All of it, or -ENODATA. */
int os_pread(int fd, uint64_t offset, void *to, size_t bytes);
/* Some bytes that are there already are written over; no harm if that fails. */
void os_put(int fd, uint64_t offset, const void *from, size_t bytes);
/* The first stretch of a file at or after *offset that has memory; false: none, or nobody knows. */
bool os_next_data(int fd, uint64_t *offset, uint64_t *end);
int64_t os_file_size(int fd);
/* Of the file system that it lies on, in pages; false: it has no size of its own. */
bool os_file_room(int fd, uint64_t *size, uint64_t *left);
int os_set_size(int fd, uint64_t bytes);
int os_identify(int fd, uint64_t *inode, uint64_t *dev);
/* The same of a descriptor of ours, which os_is_file() then knows from all others. */
int os_know_file(int fd, uint64_t *inode, uint64_t *dev);
/* Is it still that file of ours, or has the program closed it, and perhaps opened another? */
bool os_is_file(int fd, uint64_t inode);

/* Locks one byte for the open file description, as long as that is open; -EAGAIN: it is taken. */
int os_try_lock(int fd, uint64_t number, bool exclusive);

/* A lease: a lock that lives as long as somebody maps it (a forked child does). */
int os_lease_take(int lease_fd, uint64_t number, void **lease); /* -EAGAIN: it is held */
void os_lease_drop(void *lease);
bool os_lease_held(int lease_fd, uint64_t number);

/* ---- reading the address space (os/maps.c, os/pagemap.c) ---- */

struct os_vma {
    uintptr_t start, end;
    uint64_t inode, dev; /* of the mapped file; 0 without one */
    uint64_t offset; /* in it, of the mapping's start */
    bool private_rw, shared;
};

struct os_maps {
    int fd;
    uint64_t inode;   /* behind fd, unless the program has closed it */
    bool query;       /* PROCMAP_QUERY works (Linux 6.11) */
    char *buffer;     /* the text way: what was read, and the last answer */
    size_t fill, at;
    struct os_vma last;
};

int os_maps_open(struct os_maps *maps);
void os_maps_close(struct os_maps *maps);
/* Forgets what was read before: to be called when mappings of interest may have changed. */
void os_maps_refresh(struct os_maps *maps);
/* The first mapping that ends above address: 1 found, 0 none, or -errno. Ask in ascending order. */
int os_maps_find(struct os_maps *maps, uintptr_t address, struct os_vma *out);
/* How many mappings the process has, or -errno. */
int64_t os_maps_count(struct os_maps *maps);
uint64_t os_max_map_count(void);

struct os_range {
    uintptr_t start, end;
    bool zero;    /* the kernel's zero page, or nothing at all */
    bool swapped; /* out, or only marked: os_pages() knows */
};

/*
 * The ranges of [address, +n) that are tracked memory written since they were
 * last asked about, and arms them again; overlays are passed over.  Returns
 * the number of ranges (at most max), and in *next the address up to which the
 * answer goes.
 */
int64_t os_written(int pagemap_fd, uintptr_t address, uint64_t n, struct os_range *ranges,
                   int64_t max, uintptr_t *next);
/*
 * The ranges that are private memory of any kind, without arming; the rest of the contract is the
 * same.
 */
int64_t os_private(int pagemap_fd, uintptr_t address, uint64_t n, struct os_range *ranges,
                   int64_t max, uintptr_t *next);
/* A page's kind, without PAGEMAP_SCAN. */
enum os_page {
    OS_PAGE_NONE,
    OS_PAGE_FILE,
    OS_PAGE_ANON,
    OS_PAGE_ZERO,
    OS_PAGE_UNTOLD, /* swapped out, or none: an ordinary user is not told which */
};
int os_pages(int pagemap_fd, uintptr_t address, uint64_t n, uint8_t *kinds);
/* Which pages can be written without a fault that a userfaultfd hears of. */
int os_unprotected(int pagemap_fd, uintptr_t address, uint64_t n, bool *unprotected);
/* Those that were not told are faulted in for reading, and asked about again. */
int os_tell_pages(int pagemap_fd, uintptr_t address, uint64_t n, uint8_t *kinds);
/* Is there a huge page, mapped as one, at this address? false where only PAGEMAP_SCAN could tell. */
bool os_is_huge(int pagemap_fd, uintptr_t address);

/* ---- without a free descriptor (os/apart.c) ---- */

typedef void os_work(void *data);

/*
 * Does the work where one can be opened, though the process may have no more; it takes 32 KiB of
 * stack, and is not to lock anything.  Descriptor 0 is not there then.
 */
int os_apart(os_work *work, void *data);
static inline bool os_is_crowded(int error)
{
    return error == -EMFILE;
}

/* ---- other threads (os/direct_io.c) ---- */

int os_tasks_open(void); /* a descriptor for os_direct_io(), or -errno */
/*
 * Does a thread wait for a device that writes into these pages? Ask when they cannot be written
 * any more.
 */
bool os_direct_io(int tasks_fd, uintptr_t address, uint64_t n);
/* Does every other thread wait for something, in a call that reads and writes no memory? */
bool os_others_wait(int tasks_fd);

/* ---- memory that is left (os/memory.c) ---- */

#define OS_CGROUP_PATH 512

struct os_memory {
    char *text;               /* room for what files say */
    char path[2][OS_CGROUP_PATH]; /* of the memory cgroup, of version 1 and 2; or empty */
    size_t top[2];            /* length of that of the highest one that is seen from here */
    uint64_t looked_ms;       /* when they were looked for */
};

int os_memory_open(struct os_memory *memory);
void os_memory_close(struct os_memory *memory);
/*
 * Pages that this process may still take before somebody is killed for it.  which: NULL, or room
 * for the path of the cgroup that allows the least, "the machine", or nothing.
 */
uint64_t os_memory_left(struct os_memory *memory, char *which, size_t size);
uint64_t os_now_ms(void);

/* May devices write into our memory behind the page tables, with no thread waiting (os/devices.c)? */
bool os_has_devices(void);

/* ---- the machine (os/probe.c, os/numa.c) ---- */

void os_probe(struct ksmpy_caps *caps);
uint64_t os_memory_pages(void);
void os_sleep_us(unsigned us);
uint64_t os_random(void);
uint64_t os_now_ns(void); /* of a clock that only goes forward */
/* Node numbers of n pages (negative errno for a page without one). */
int os_nodes(uintptr_t address, uint64_t n, int *nodes);
int os_bind(void *address, size_t bytes, int node);

#endif
