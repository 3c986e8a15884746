/*
 * A preloaded library that makes single calls of one shared object fail.
 *
 * Every wrapped function looks at its return address: calls from elsewhere go
 * through untouched.  Calls from the target are numbered from 1 while the
 * library is armed, logged, and the chosen one (or, persistently, it and all
 * later ones of its kind) fails with an errno that the kernel could really
 * give there.  Where several threads make calls a number does not name the same
 * call twice; the nth of a kind that one thread makes does.  UFFDIO_WAKE, close and the like are left
 * out, as they do not fail, and so is pipe2, which only the program calls, through the extension
 * where that leads its calls.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "target.h"
#include "variadic.h"

enum { MAX_LOG = 1 << 16, MAX_VARIANTS = 4, PASS = -1 };

struct kind {
    const char *name;
    int errnos[MAX_VARIANTS];
};

enum kind_number {
    MMAP,
    MMAP_FIXED,
    MREMAP,
    MUNMAP,
    MPROTECT,
    MADV_DROP,
    MADV_FILL,
    MADV_FLAG,
    UFFD_API,
    UFFD_REGISTER,
    UFFD_UNREGISTER,
    UFFD_COPY,
    UFFD_ZERO,
    UFFD_MOVE,
    UFFD_PROTECT,
    SCAN,
    QUERY,
    OTHER_IOCTL,
    ALLOCATE,
    PUNCH,
    TRUNCATE,
    MEMFD,
    OPEN,
    READ,
    PREAD,
    PWRITE,
    FCNTL,
    STAT,
    USERFAULTFD,
    MBIND,
    OTHER_SYSCALL,
    THREAD,
    HEAP,
    EVENTFD,
    POLL,
    KINDS
};

static const struct kind kinds[KINDS] = {
    [MMAP] = {"mmap", {ENOMEM}},
    [MMAP_FIXED] = {"mmap(MAP_FIXED)", {ENOMEM}},
    [MREMAP] = {"mremap", {ENOMEM}},
    [MUNMAP] = {"munmap", {ENOMEM}},
    [MPROTECT] = {"mprotect", {ENOMEM}},
    [MADV_DROP] = {"madvise(MADV_DONTNEED)", {EINVAL}},
    [MADV_FILL] = {"madvise(MADV_POPULATE)", {ENOMEM, EFAULT}},
    [MADV_FLAG] = {"madvise(flag)", {ENOMEM}},
    [UFFD_API] = {"UFFDIO_API", {EINVAL}},
    [UFFD_REGISTER] = {"UFFDIO_REGISTER", {ENOMEM, EBUSY}},
    [UFFD_UNREGISTER] = {"UFFDIO_UNREGISTER", {ENOMEM}},
    [UFFD_COPY] = {"UFFDIO_COPY", {ENOMEM, EAGAIN}},
    [UFFD_ZERO] = {"UFFDIO_ZEROPAGE", {ENOMEM, EAGAIN}},
    [UFFD_MOVE] = {"UFFDIO_MOVE", {EBUSY, EAGAIN, ENOMEM}},
    [UFFD_PROTECT] = {"UFFDIO_WRITEPROTECT", {ENOMEM, EAGAIN}},
    [SCAN] = {"PAGEMAP_SCAN", {ENOMEM}},
    [QUERY] = {"PROCMAP_QUERY", {ENOMEM, ENOTTY}},
    [OTHER_IOCTL] = {"ioctl", {ENOMEM}},
    [ALLOCATE] = {"fallocate", {ENOSPC, EINTR}},
    [PUNCH] = {"fallocate(PUNCH_HOLE)", {EINTR}},
    [TRUNCATE] = {"ftruncate", {ENOSPC}},
    [MEMFD] = {"memfd_create", {EMFILE, ENOMEM}},
    [OPEN] = {"open", {EMFILE, ENFILE}},
    [READ] = {"read", {EINTR}},
    [PREAD] = {"pread", {ENOMEM}},
    [PWRITE] = {"pwrite", {ENOSPC, EFAULT, EBADF}},
    [FCNTL] = {"fcntl", {ENOLCK}},
    [STAT] = {"fstat", {ENOMEM}},
    [USERFAULTFD] = {"userfaultfd", {EPERM, EMFILE, ENOSYS}},
    [MBIND] = {"mbind", {ENOMEM, EPERM}},
    [OTHER_SYSCALL] = {"syscall", {ENOMEM}},
    [THREAD] = {"pthread_create", {EAGAIN}},
    [HEAP] = {"malloc", {ENOMEM}},
    [EVENTFD] = {"eventfd", {EMFILE}},
    [POLL] = {"poll", {EINTR}},
};

static atomic_int armed;
static atomic_int leaves_gap, gap_stays;
static atomic_uint_fast64_t calls;
static uint64_t fail_at;
static int fail_variant;
static int fail_persistently;
static atomic_int failing_kind;
static atomic_uint_fast64_t spared; /* calls of that kind that still succeed */
static atomic_uint_fast64_t fired;
static atomic_int understating;
static atomic_uint_fast64_t understatements;
static struct {
    int kind;
    uint64_t site;
} call_log[MAX_LOG];

/* ---- control ------------------------------------------------------------------------------ */

int inject_target(const char *part)
{
    return choose_target(part);
}

/* Numbers calls from 1 again; fails the nth (0: none), or it and all later ones of its kind. */
void inject_arm(uint64_t nth, int variant, int persistently)
{
    atomic_store(&armed, 0);
    atomic_store(&calls, 0);
    atomic_store(&fired, 0);
    atomic_store(&failing_kind, PASS);
    atomic_store(&spared, 0);
    fail_at = nth;
    fail_variant = variant;
    fail_persistently = persistently;
    atomic_store(&leaves_gap, 0);
    atomic_store(&gap_stays, 0);
    atomic_store(&armed, 1);
}

/* The nth call of a kind fails, and every later one; -1 if there is no such kind. */
int inject_arm_kind(const char *name, int variant, uint64_t nth)
{
    for (int kind = 0; kind < KINDS; kind++)
        if (strcmp(kinds[kind].name, name) == 0) {
            inject_arm(0, variant, 1);
            atomic_store(&spared, nth - 1);
            atomic_store(&failing_kind, kind);
            return 0;
        }
    return -1;
}

void inject_disarm(void)
{
    atomic_store(&armed, 0);
}

/* The nth call of a kind fails, and takes away what was mapped where it was to map something. */
int inject_leave_gap(const char *name, uint64_t nth)
{
    int known = inject_arm_kind(name, 0, nth);

    atomic_store(&leaves_gap, 1);
    return known;
}

/* UFFDIO_MOVE does all of its work, and says that it did less. */
void inject_understate(int on)
{
    if (on)
        atomic_store(&understatements, 0);
    atomic_store(&understating, on);
}

uint64_t inject_understated(void)
{
    return atomic_load(&understatements);
}

uint64_t inject_calls(void)
{
    return atomic_load(&calls);
}

uint64_t inject_fired(void)
{
    return atomic_load(&fired);
}

/* What call n (from 1) was, and where in the object it came from. */
const char *inject_name(uint64_t n)
{
    return n && n <= atomic_load(&calls) && n <= MAX_LOG ? kinds[call_log[n - 1].kind].name : "";
}

uint64_t inject_site(uint64_t n)
{
    return n && n <= atomic_load(&calls) && n <= MAX_LOG ? call_log[n - 1].site : 0;
}

int inject_variants(const char *name)
{
    int count = 0;

    for (int kind = 0; kind < KINDS; kind++)
        if (strcmp(kinds[kind].name, name) == 0)
            while (count < MAX_VARIANTS && kinds[kind].errnos[count])
                count++;
    return count;
}

/* ---- the decision ------------------------------------------------------------------------- */

static int errno_of(int kind)
{
    int variant = fail_variant;

    while (variant && !kinds[kind].errnos[variant])
        variant--;
    atomic_fetch_add(&fired, 1);
    return kinds[kind].errnos[variant];
}

/* Interruptions end; and memory for the owner's only copy of a page is rightly waited for. */
static int can_persist(int kind)
{
    return kind != READ && kind != POLL && kind != UFFD_COPY;
}

static int spare(void)
{
    uint64_t left = atomic_load(&spared);

    while (left && !atomic_compare_exchange_weak(&spared, &left, left - 1))
        ;
    return left != 0;
}

/* 0: go on; else the errno to fail with. */
static int verdict(int kind, void *return_address)
{
    uintptr_t site = (uintptr_t)return_address;
    uint64_t number;

    if (!atomic_load(&armed) || !in_target(site) || kind == PASS)
        return 0;
    number = atomic_fetch_add(&calls, 1) + 1;
    if (number <= MAX_LOG) {
        call_log[number - 1].kind = kind;
        call_log[number - 1].site = site - target_start;
    }
    if (number == fail_at) {
        if (fail_persistently && can_persist(kind))
            atomic_store(&failing_kind, kind);
        return errno_of(kind);
    }
    return atomic_load(&failing_kind) == kind && !spare() ? errno_of(kind) : 0;
}

#define REAL(name)                                                                                 \
    static __typeof__(&name) real;                                                                 \
    if (!real)                                                                                     \
    real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define FAIL_IF(kind, value)                                                                       \
    do {                                                                                           \
        int error = verdict(kind, __builtin_return_address(0));                                    \
        if (error) {                                                                               \
            errno = error;                                                                         \
            return value;                                                                          \
        }                                                                                          \
    } while (0)

/* ---- address space ------------------------------------------------------------------------ */

/*
 * What Linux does in a memory cgroup at its limit: what was mapped at a fixed address is gone when
 * the call fails, and so do the next attempts to map something there.
 */
static void leave_gap(void *address, size_t length)
{
    if (!atomic_load(&leaves_gap))
        return;
    atomic_store(&failing_kind, PASS);
    syscall(SYS_munmap, address, length);
    atomic_store(&gap_stays, 2);
}

static int is_scarce(int flags)
{
    int left = atomic_load(&gap_stays);

    while (flags & MAP_FIXED_NOREPLACE && left > 0)
        if (atomic_compare_exchange_weak(&gap_stays, &left, left - 1))
            return 1;
    return 0;
}

/* The extension makes these calls by their numbers, others by the C library's functions. */
static void *map_or_fail(void *site, void *address, size_t length, int prot, int flags, int fd,
                         off_t offset)
{
    int error = verdict(flags & MAP_FIXED ? MMAP_FIXED : MMAP, site);

    REAL(mmap);
    if (error && flags & MAP_FIXED)
        leave_gap(address, length);
    if (error || is_scarce(flags)) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return real(address, length, prot, flags, fd, offset);
}

void *mmap(void *address, size_t length, int prot, int flags, int fd, off_t offset)
{
    return map_or_fail(__builtin_return_address(0), address, length, prot, flags, fd, offset);
}

void *mmap64(void *address, size_t length, int prot, int flags, int fd, off64_t offset)
{
    return map_or_fail(__builtin_return_address(0), address, length, prot, flags, fd, offset);
}

static void *move_or_fail(void *site, void *from, size_t old_length, size_t new_length, int flags,
                          void *to)
{
    int error = verdict(MREMAP, site);

    REAL(mremap);
    if (error) {
        if (flags & MREMAP_FIXED)
            leave_gap(to, new_length);
        errno = error;
        return MAP_FAILED;
    }
    return real(from, old_length, new_length, flags, to);
}

int munmap(void *address, size_t length)
{
    REAL(munmap);
    FAIL_IF(MUNMAP, -1);
    return real(address, length);
}

static int kind_of_advice(int advice)
{
    enum { POPULATE_READ = 22, POPULATE_WRITE = 23 };

    if (advice == MADV_DONTNEED)
        return MADV_DROP;
    return advice == POPULATE_READ || advice == POPULATE_WRITE ? MADV_FILL : MADV_FLAG;
}

/* ---- descriptors -------------------------------------------------------------------------- */

static int kind_of_uffd(unsigned number)
{
    switch (number) {
    case 0x3f:
        return UFFD_API;
    case 0x00:
        return UFFD_REGISTER;
    case 0x01:
        return UFFD_UNREGISTER;
    case 0x03:
        return UFFD_COPY;
    case 0x04:
        return UFFD_ZERO;
    case 0x05:
        return UFFD_MOVE;
    case 0x06:
        return UFFD_PROTECT;
    default:
        return PASS;
    }
}

static int kind_of_ioctl(unsigned long request)
{
    unsigned type = _IOC_TYPE(request), number = _IOC_NR(request);

    if (type == 0xAA)
        return request == _IO(0xAA, 0x00) ? USERFAULTFD : kind_of_uffd(number);
    if (type == 'f' && number == 16)
        return SCAN;
    return type == 'f' && number == 17 ? QUERY : OTHER_IOCTL;
}

struct move { /* linux/userfaultfd.h (6.8) */
    uint64_t to, from, length, mode;
    int64_t moved;
};

/* Every fourth time nothing is moved, and the next time all of it, both of which is the truth. */
static int denied(int kind, struct move *move)
{
    if (kind != UFFD_MOVE || !atomic_load(&understating) ||
        atomic_fetch_add(&understatements, 1) % 4)
        return 0;
    move->moved = -EAGAIN;
    errno = EAGAIN;
    return 1;
}

/*
 * What Linux 6.18 does now and then under load: all pages are moved, and the
 * answer is an error, or a part of them.
 */
static int understated(int kind, struct move *move, int result)
{
    if (kind != UFFD_MOVE || result < 0 || !atomic_load(&understating))
        return result;
    switch (atomic_load(&understatements) % 4) {
    case 3:
        move->moved = -EAGAIN;
        break;
    case 0:
        move->moved = 4096;
        break;
    default:
        return result;
    }
    errno = EAGAIN;
    return move->moved == (int64_t)move->length ? result : -1;
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list rest;
    void *argument;

    REAL(ioctl);
    va_start(rest, request);
    argument = va_arg(rest, void *);
    va_end(rest);
    FAIL_IF(kind_of_ioctl(request), -1);
    if (denied(kind_of_ioctl(request), argument))
        return -1;
    return understated(kind_of_ioctl(request), argument, real(fd, request, argument));
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    REAL(fallocate);
    FAIL_IF(mode & FALLOC_FL_PUNCH_HOLE ? PUNCH : ALLOCATE, -1);
    return real(fd, mode, offset, length);
}

int posix_fallocate(int fd, off_t offset, off_t length)
{
    int error = verdict(ALLOCATE, __builtin_return_address(0));

    REAL(posix_fallocate);
    return error ? error : real(fd, offset, length);
}

int ftruncate(int fd, off_t length)
{
    REAL(ftruncate);
    FAIL_IF(TRUNCATE, -1);
    return real(fd, length);
}

int memfd_create(const char *name, unsigned flags)
{
    REAL(memfd_create);
    FAIL_IF(MEMFD, -1);
    return real(name, flags);
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    mode_t mode;

    REAL(open);
    va_start(rest, flags);
    mode = va_arg(rest, mode_t);
    va_end(rest);
    FAIL_IF(OPEN, -1);
    return real(path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...)
{
    va_list rest;
    mode_t mode;

    REAL(openat);
    va_start(rest, flags);
    mode = va_arg(rest, mode_t);
    va_end(rest);
    FAIL_IF(OPEN, -1);
    return real(folder, path, flags, mode);
}

ssize_t read(int fd, void *buffer, size_t length)
{
    REAL(read);
    FAIL_IF(READ, -1);
    return real(fd, buffer, length);
}

ssize_t pwrite(int fd, const void *buffer, size_t length, off_t offset)
{
    REAL(pwrite);
    FAIL_IF(PWRITE, -1);
    return real(fd, buffer, length, offset);
}

ssize_t pread(int fd, void *buffer, size_t length, off_t offset)
{
    REAL(pread);
    FAIL_IF(PREAD, -1);
    return real(fd, buffer, length, offset);
}

int fcntl(int fd, int command, ...)
{
    va_list rest;
    void *argument;

    REAL(fcntl);
    va_start(rest, command);
    argument = va_arg(rest, void *);
    va_end(rest);
    FAIL_IF(FCNTL, -1);
    return real(fd, command, argument);
}

int fstat(int fd, struct stat *info)
{
    REAL(fstat);
    FAIL_IF(STAT, -1);
    return real(fd, info);
}

int eventfd(unsigned value, int flags)
{
    REAL(eventfd);
    FAIL_IF(EVENTFD, -1);
    return real(value, flags);
}

int poll(struct pollfd *fds, nfds_t count, int timeout)
{
    REAL(poll);
    FAIL_IF(POLL, -1);
    return real(fds, count, timeout);
}

/* ---- the rest ----------------------------------------------------------------------------- */

static int kind_of_syscall(long number, const long *a)
{
    switch (number) {
    case SYS_userfaultfd:
        return USERFAULTFD;
    case SYS_mbind:
        return MBIND;
    case SYS_munmap:
        return MUNMAP;
    case SYS_mprotect:
        return MPROTECT;
    case SYS_madvise:
        return kind_of_advice((int)a[2]);
    case SYS_gettid:
    case SYS_futex:
        return PASS;
    default:
        return OTHER_SYSCALL;
    }
}

long syscall(long number, ...)
{
    TAKE_ARGUMENTS(a, number);
    void *site = __builtin_return_address(0);

    REAL(syscall);
    if (number == SYS_mmap)
        return (long)map_or_fail(site, (void *)a[0], a[1], a[2], a[3], a[4], a[5]);
    if (number == SYS_mremap)
        return (long)move_or_fail(site, (void *)a[0], a[1], a[2], a[3], (void *)a[4]);
    FAIL_IF(kind_of_syscall(number, a), -1);
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *), void *arg)
{
    int error = verdict(THREAD, __builtin_return_address(0));

    REAL(pthread_create);
    return error ? error : real(thread, attr, run, arg);
}

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *old, size_t size);

void *malloc(size_t size)
{
    FAIL_IF(HEAP, NULL);
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    FAIL_IF(HEAP, NULL);
    return __libc_calloc(count, size);
}

void *realloc(void *old, size_t size)
{
    FAIL_IF(HEAP, NULL);
    return __libc_realloc(old, size);
}
