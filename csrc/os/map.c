#include "os/map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/pages.h"
#include "ksmpy.h"
#include "os/clock.h"
#include "os/files.h"
#include "os/own_memory.h"
#include "os/unhooked.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define RW (PROT_READ | PROT_WRITE)

static void *mapped(void *address)
{
    return address == MAP_FAILED ? NULL : address;
}

static int status(int result)
{
    return result < 0 ? -errno : 0;
}

static void *anywhere(size_t bytes, int rights)
{
    return mapped(os_mmap(NULL, bytes, rights, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

/*
 * Fresh memory of the engine's own.  The kernel puts a new mapping right below another one, which
 * may be that of a region.  Its shadow will need the page below it (freeze/borrow.c), hence there
 * the engine's mapping is longer by what it can do without.
 */
static void *fresh(size_t bytes, int rights)
{
    void *got = anywhere(bytes, rights);
    uintptr_t end = (uintptr_t)got + bytes;
    if (got && os_is_mapped(end) && !os_owns(end)) {
        os_munmap(got, bytes);
        got = anywhere(bytes + OS_SPARE, rights);
        if (got) {
            os_own_with_spare((uintptr_t)got, bytes);
            return got;
        }
        got = anywhere(bytes, rights);
    }
    if (got)
        os_own((uintptr_t)got, bytes);
    return got;
}

void *os_reserve(size_t bytes)
{
    return fresh(bytes, PROT_NONE);
}

int os_commit(void *address, size_t bytes)
{
    return status(os_mprotect(address, bytes, RW));
}

void os_unmap(void *address, size_t bytes)
{
    if (!address)
        return;
    /* first: once unmapped it may be another thread's */
    size_t spare = os_disown((uintptr_t)address, bytes);
    os_munmap(address, bytes + spare);
}

int os_dont_fork(void *address, size_t bytes)
{
    return status(os_madvise(address, bytes, MADV_DONTFORK));
}

void os_dont_dump(void *address, size_t bytes)
{
    if (address)
        os_madvise(address, bytes, MADV_DONTDUMP);
}

int os_do_dump(void *address, size_t bytes)
{
    return status(os_madvise(address, bytes, MADV_DODUMP));
}

#define DUMP_PRIVATE_MEMORY 1 /* bits of coredump_filter, see core(5) */
#define DUMP_PRIVATE_FILES 4

void os_dump_overlays(void)
{
    char text[32] = "";
    int fd = open("/proc/self/coredump_filter", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    unsigned long filter = read(fd, text, sizeof text - 1) > 0 ? strtoul(text, NULL, 16) : 0;
    if (filter & DUMP_PRIVATE_MEMORY && !(filter & DUMP_PRIVATE_FILES)) {
        snprintf(text, sizeof text, "0x%lx", filter | DUMP_PRIVATE_FILES);
        os_put(fd, 0, text, strlen(text));
    }
    close(fd);
}

void os_do_fork(void *address, size_t bytes)
{
    os_madvise(address, bytes, MADV_DOFORK);
}

void *os_alloc(size_t bytes)
{
    return fresh(bytes, RW);
}

void *os_reserve_in_step(size_t bytes, uint64_t like)
{
    size_t size = bytes_of(HUGE_PAGES);
    uintptr_t base = (uintptr_t)os_reserve(bytes + size);
    if (!base)
        return NULL;
    uintptr_t at = base + (like - base) % size;
    if (at > base)
        os_unmap((void *)base, at - base);
    os_unmap((void *)(at + bytes), base + size - at);
    return (void *)at;
}

void *os_alloc_in_step(size_t bytes, uintptr_t like)
{
    void *at = os_reserve_in_step(bytes, like);
    if (!at || os_commit(at, bytes) == 0)
        return at;
    os_unmap(at, bytes);
    return NULL;
}

void *os_alloc_huge(void)
{
    return os_alloc_in_step(bytes_of(HUGE_PAGES), 0);
}

#define BETWEEN_TRIES_US 50

/*
 * Did a call fail for want of memory or mappings and leave a gap?  The kernel takes away what was mapped
 * before it makes what is to replace it, and where a memory cgroup is at its limit, and nobody in it
 * can be killed, that fails: on Linux 6.18 40 of 718 calls of mmap() that failed there left a gap.
 */
static bool has_left_gap(int error, uintptr_t address)
{
    return error == -ENOMEM && !os_is_mapped(address);
}

static int map_at(uintptr_t address, uint64_t n, int flags, int fd, uint64_t offset)
{
    void *got = os_mmap((void *)address, bytes_of(n), RW, MAP_PRIVATE | flags, fd, (off_t)offset);
    return got == MAP_FAILED ? -errno : 0;
}

/*
 * Where the program may have no more address space than it has (RLIMIT_AS), or less, nothing can be mapped
 * any more.  What is mapped already may go from one place to another.
 */
static bool moves_for_good(uintptr_t to, uintptr_t from, uint64_t n)
{
    return from && !os_is_mapped(to) && os_remap(to, from, n, false) == 0;
}

/*
 * A gap would be the program's memory no more, so there it is tried until there is memory; first at
 * once, before another thread maps something there.  spare: where the same is mapped already, or 0.
 */
static int fill_gap(int error, uintptr_t address, uint64_t n, int flags, int fd, uint64_t offset,
                    uintptr_t spare)
{
    while (has_left_gap(error, address)) {
        error = map_at(address, n, flags | MAP_FIXED_NOREPLACE, fd, offset);
        if (error == -ENOMEM && moves_for_good(address, spare, n))
            return OS_MOVED_FOR_GOOD;
        if (error == -ENOMEM)
            os_sleep_us(BETWEEN_TRIES_US);
    }
    return error;
}

static int map_over(uintptr_t address, uint64_t n, int flags, int fd, uint64_t offset)
{
    int error = map_at(address, n, flags | MAP_FIXED, fd, offset);
    return fill_gap(error, address, n, flags, fd, offset, 0);
}

int os_map_frames(uintptr_t address, uint64_t n, int memfd, uint64_t offset)
{
    return map_over(address, n, 0, memfd, offset);
}

int os_move_frames(uintptr_t to, uintptr_t from, uint64_t n, int memfd, uint64_t offset)
{
    int error = os_remap(to, from, n, true);
    return fill_gap(error, to, n, 0, memfd, offset, from);
}

int os_move_memory(uintptr_t to, uintptr_t from, uint64_t n)
{
    int error = os_remap(to, from, n, true);
    return has_left_gap(error, to) && moves_for_good(to, from, n) ? OS_MOVED_FOR_GOOD : error;
}

int os_map_anonymous(uintptr_t address, uint64_t n, int vma_flags)
{
    int error = map_over(address, n, MAP_ANONYMOUS, -1, 0);
    if (!error)
        os_set_vma_flags(address, n, vma_flags);
    return error;
}

int os_claim_as(uintptr_t address, uint64_t n, bool counted)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | (counted ? 0 : MAP_NORESERVE);
    void *got = os_mmap((void *)address, bytes_of(n), PROT_NONE, flags, -1, 0);
    return got == MAP_FAILED ? -errno : 0;
}

/* After mlockall(MCL_FUTURE) a new mapping is locked, and would be filled once it is committed. */
int os_claim(uintptr_t address, uint64_t n)
{
    int error = os_claim_as(address, n, true);
    if (error)
        return error;
    munlock((void *)address, bytes_of(n));
    return 0;
}

bool os_claim_gap(uintptr_t address, uint64_t n)
{
    int error = os_claim(address, n);
    for (; has_left_gap(error, address); error = os_claim(address, n))
        os_sleep_us(BETWEEN_TRIES_US);
    return !error;
}

/* mincore() fails with ENOMEM where nothing is mapped. */
bool os_is_mapped(uintptr_t page)
{
    unsigned char there;
    return mincore((void *)page, PAGE_SIZE, &there) == 0 || errno != ENOMEM;
}

bool os_is_there(uintptr_t page)
{
    unsigned char there = 0;
    return mincore((void *)page, PAGE_SIZE, &there) == 0 && there & 1;
}

/* The kernel may be told to refuse this call (seccomp): then the bytes matter more than a fault. */
void os_copy(uintptr_t to, uintptr_t from, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        struct iovec source = {page_at(from, i), PAGE_SIZE}, target = {page_at(to, i), PAGE_SIZE};
        if (process_vm_writev(getpid(), &source, 1, &target, 1, 0) < 0 && errno != EFAULT)
            memcpy(target.iov_base, source.iov_base, PAGE_SIZE);
    }
}

/* Memory that was just mapped and never touched is in memory only if the kernel has filled it. */
bool os_locks_new_memory(void)
{
    void *trial = anywhere(PAGE_SIZE, RW);
    bool there = trial && os_is_there((uintptr_t)trial);
    if (trial)
        os_munmap(trial, PAGE_SIZE);
    return there;
}

bool os_can_map(uint64_t n)
{
    void *trial = anywhere(bytes_of(n), RW);
    if (trial)
        os_munmap(trial, bytes_of(n));
    return trial != NULL;
}

static bool is_limited(int what)
{
    struct rlimit limit;
    return getrlimit(what, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
}

/*
 * How long a setting of the kernel's is believed, in ms.  Reading its file takes 6 us, a hundredth of
 * what it takes to bring one huge page back, so it is not read for each of them.
 */
#define BELIEVED_MS 100
#define SETTING_BITS 2

/*
 * A setting as read() says it, below 1 << SETTING_BITS; *answer has it in its lowest bits, and its
 * time above.
 */
static unsigned remembered(_Atomic uint64_t *answer, unsigned (*read)(void))
{
    uint64_t known = atomic_load(answer), now = os_now_ms();
    if (now - (known >> SETTING_BITS) >= BELIEVED_MS)
        atomic_store(answer, known = now << SETTING_BITS | read());
    return known & ((1U << SETTING_BITS) - 1);
}

#define STRICT 2 /* no more memory may be mapped than there is */

static unsigned read_overcommit(void)
{
    char mode[2];
    os_read_text("/proc/sys/vm/overcommit_memory", mode, sizeof mode);
    return mode[0] == '2' ? STRICT : 0;
}

/*
 * Address space counts against RLIMIT_AS and RLIMIT_DATA, and with strict overcommit against the
 * commit limit (vm.overcommit_memory 2, Documentation/mm/overcommit-accounting).
 */
bool os_is_rationed(void)
{
    static _Atomic uint64_t answer;
    return is_limited(RLIMIT_AS) || is_limited(RLIMIT_DATA) ||
           remembered(&answer, read_overcommit) == STRICT;
}

int os_set_vma_flags(uintptr_t address, uint64_t n, int vma_flags)
{
    int error = 0;
    if (vma_flags & KSMPY_VMA_HUGEPAGE)
        error |= os_madvise((void *)address, bytes_of(n), MADV_HUGEPAGE);
    if (vma_flags & KSMPY_VMA_NOHUGEPAGE)
        error |= os_madvise((void *)address, bytes_of(n), MADV_NOHUGEPAGE);
    if (vma_flags & KSMPY_VMA_DONTDUMP)
        error |= os_madvise((void *)address, bytes_of(n), MADV_DONTDUMP);
    return status(error);
}

int os_remap(uintptr_t to, uintptr_t from, uint64_t n, bool keep)
{
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED | (keep ? MREMAP_DONTUNMAP : 0);
    void *got = os_mremap((void *)from, bytes_of(n), bytes_of(n), flags, (void *)to);
    return got == MAP_FAILED ? -errno : 0;
}

/*
 * The page is unlocked first, since locked memory that grows is filled.  If it cannot be moved into
 * the reservation, that is not unmapped: the failed mremap may have unmapped it already, and
 * another thread may have mapped something there since.
 */
uintptr_t os_grow(uintptr_t from, uint64_t n, uintptr_t like)
{
    void *at = os_reserve_in_step(bytes_of(n), like), *got = MAP_FAILED;
    munlock((void *)from, PAGE_SIZE);
    if (at)
        got = os_mremap((void *)from, PAGE_SIZE, bytes_of(n), MREMAP_MAYMOVE | MREMAP_FIXED, at);
    if (got == MAP_FAILED)
        got = os_mremap((void *)from, PAGE_SIZE, bytes_of(n), MREMAP_MAYMOVE, NULL);
    if (got == MAP_FAILED)
        return 0;
    size_t spare = os_disown(from, PAGE_SIZE);
    if (spare)
        os_munmap(page_at(from, 1), spare);
    os_own((uintptr_t)got, bytes_of(n));
    return (uintptr_t)got;
}

int os_protect(uintptr_t address, uint64_t n, bool writable)
{
    return status(os_mprotect((void *)address, bytes_of(n), writable ? RW : PROT_READ));
}

/* MADV_DONTNEED refuses locked memory (EINVAL), which is unlocked then. */
int os_drop(uintptr_t address, uint64_t n)
{
    if (os_madvise((void *)address, bytes_of(n), MADV_DONTNEED) == 0)
        return 0;
    munlock((void *)address, bytes_of(n));
    return status(os_madvise((void *)address, bytes_of(n), MADV_DONTNEED));
}

void os_look_away(uintptr_t address, uint64_t n)
{
    os_madvise((void *)address, bytes_of(n), MADV_DONTNEED);
}

/* Locked memory is the only reason for EBUSY, see msync(2); the call looks at no page. */
bool os_is_locked(uintptr_t address, uint64_t n)
{
    return os_msync((void *)address, bytes_of(n), MS_INVALIDATE) < 0 && errno == EBUSY;
}

int os_reserve_at(uintptr_t address, uint64_t n)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    void *got = os_mmap((void *)address, bytes_of(n), PROT_NONE, flags, -1, 0);
    return got == MAP_FAILED ? -errno : 0;
}

/* Where memory is given huge pages, by /sys/kernel/mm/transparent_hugepage/enabled. */
enum given { NEVER, WHERE_ADVISED, ALWAYS };

static unsigned read_given(void)
{
    char text[64];
    os_read_text("/sys/kernel/mm/transparent_hugepage/enabled", text, sizeof text);
    return strstr(text, "[always]") ? ALWAYS : strstr(text, "[madvise]") ? WHERE_ADVISED : NEVER;
}

bool os_gives_huge_pages(int vma_flags)
{
    static _Atomic uint64_t answer;
    unsigned given = remembered(&answer, read_given);
    return !(vma_flags & KSMPY_VMA_NOHUGEPAGE) &&
           (given == ALWAYS || (given == WHERE_ADVISED && vma_flags & KSMPY_VMA_HUGEPAGE));
}

/*
 * Takes 0.4 us for memory that was never offered to the kernel's KSM.  EINVAL: the kernel was built
 * without it.
 */
int os_keep_from_ksm(uintptr_t address, uint64_t n)
{
    int error = os_madvise((void *)address, bytes_of(n), MADV_UNMERGEABLE);
    return error && errno == EINVAL ? 0 : status(error);
}

int os_populate(uintptr_t address, uint64_t n, bool write)
{
    int result;
    do
        result = os_madvise((void *)address, bytes_of(n),
                            write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
    while (result < 0 && errno == EINTR);
    return status(result);
}

/*
 * MADV_COLD splits a huge page of which it is given a part only.  What else it does is harmless: it
 * makes the pages the first to be swapped out.
 */
void os_split(uintptr_t address, uint64_t n)
{
    os_madvise((void *)address, bytes_of(n), MADV_COLD);
}

void *os_map_hidden(int fd, uint64_t offset, size_t bytes)
{
    void *at = os_reserve_in_step(bytes, offset);
    if (!at)
        return NULL;
    os_disown((uintptr_t)at, bytes);
    int how = MAP_SHARED | MAP_NORESERVE | MAP_FIXED;
    void *got = mapped(os_mmap(at, bytes, PROT_NONE, how, fd, (off_t)offset));
    if (!got)
        os_unmap(at, bytes);
    if (got && os_dont_fork(got, bytes) == 0 && os_madvise(got, bytes, MADV_DONTDUMP) == 0)
        return got;
    os_unmap(got, bytes);
    return NULL;
}

void *os_map_shared(int fd, uint64_t offset, size_t bytes, bool writable)
{
    int rights = writable ? RW : PROT_READ;
    return mapped(os_mmap(NULL, bytes, rights, MAP_SHARED | MAP_NORESERVE, fd, (off_t)offset));
}

int os_collapse(uintptr_t address, uint64_t n)
{
    return status(os_madvise((void *)address, bytes_of(n), MADV_COLLAPSE));
}
