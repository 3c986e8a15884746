/* userfaultfd.  Numbers newer than Debian 12's headers are given here. */
#include "os/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/pages.h"
#include "os/files.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef UFFDIO_MOVE
struct uffdio_move {
    __u64 dst, src, len, mode;
    __s64 move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#endif

#define FEATURE_FLAG_WP (1u << 0)
#define FEATURE_EVENT_REMOVE (1u << 3)
#define FEATURE_WP_SHMEM (1u << 12)
#define FEATURE_WP_UNPOPULATED (1u << 13)
#define FEATURE_WP_ASYNC (1u << 15)
#define FEATURE_MOVE (1u << 16)

/*
 * A userfaultfd that handles faults of the kernel, too, if there is a way to get one: the system
 * call and the device file are tried, as either may be allowed without the other.
 */
static int open_fd(bool *kernel_mode)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    *kernel_mode = true;
    if (fd >= 0)
        return fd;
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device >= 0) {
        fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        close(device);
        if (fd >= 0)
            return fd;
    }
    *kernel_mode = false;
    return (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
}

bool os_uffd_handles_calls(void)
{
    bool kernel_mode;
    int fd = open_fd(&kernel_mode);
    if (fd >= 0)
        close(fd);
    return fd >= 0 && kernel_mode;
}

static uint64_t kernel_features(int features)
{
    uint64_t bits = 0;
    if (features & OS_UFFD_MOVE)
        bits |= FEATURE_MOVE;
    if (features & OS_UFFD_WP_ASYNC)
        bits |= FEATURE_FLAG_WP | FEATURE_WP_SHMEM | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC;
    if (features & OS_UFFD_WP_SYNC)
        bits |= FEATURE_FLAG_WP | FEATURE_WP_SHMEM;
    if (features & OS_UFFD_TELL_REMOVE)
        bits |= FEATURE_EVENT_REMOVE;
    return bits;
}

int os_uffd_open(int features)
{
    bool kernel_mode;
    int fd = os_keep_off_standard(open_fd(&kernel_mode));
    if (fd < 0)
        return fd;
    struct uffdio_api api = {.api = UFFD_API, .features = kernel_features(features)};
    if (ioctl(fd, UFFDIO_API, &api) < 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

int os_uffd_register(int fd, uintptr_t address, uint64_t n, int mode)
{
    struct uffdio_register request = {.range = {address, bytes_of(n)}};
    if (mode & OS_UFFD_MISSING)
        request.mode |= UFFDIO_REGISTER_MODE_MISSING;
    if (mode & OS_UFFD_WP)
        request.mode |= UFFDIO_REGISTER_MODE_WP;
    return ioctl(fd, UFFDIO_REGISTER, &request) < 0 ? -errno : 0;
}

int os_uffd_unregister(int fd, uintptr_t address, uint64_t n)
{
    struct uffdio_range range = {address, bytes_of(n)};
    return ioctl(fd, UFFDIO_UNREGISTER, &range) < 0 ? -errno : 0;
}

/*
 * The filling ioctls share one protocol: done is the number of bytes filled,
 * or -errno; EAGAIN asks to go on with the rest (mappings were changing).
 */
static int64_t filled(int result, int64_t done)
{
    if (done > 0)
        return done >> PAGE_SHIFT;
    if (result < 0)
        return done < 0 ? done : -errno;
    return 0;
}

int64_t os_uffd_move(int fd, uintptr_t to, uintptr_t from, uint64_t n)
{
    struct uffdio_move request = {.dst = to, .src = from, .len = bytes_of(n)};
    int result = ioctl(fd, UFFDIO_MOVE, &request);
    return filled(result, request.move);
}

int64_t os_uffd_copy(int fd, uintptr_t to, const void *from, uint64_t n)
{
    struct uffdio_copy request = {.dst = to, .src = (uintptr_t)from, .len = bytes_of(n)};
    int result = ioctl(fd, UFFDIO_COPY, &request);
    return filled(result, request.copy);
}

int64_t os_uffd_zero(int fd, uintptr_t address, uint64_t n)
{
    struct uffdio_zeropage request = {.range = {address, bytes_of(n)}};
    int result = ioctl(fd, UFFDIO_ZEROPAGE, &request);
    return filled(result, request.zeropage);
}

int os_uffd_wake(int fd, uintptr_t address, uint64_t n)
{
    struct uffdio_range range = {address, bytes_of(n)};
    return ioctl(fd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}

int os_uffd_protect(int fd, uintptr_t address, uint64_t n, bool on)
{
    struct uffdio_writeprotect request = {.range = {address, bytes_of(n)},
                                          .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
    int result;
    do
        result = ioctl(fd, UFFDIO_WRITEPROTECT, &request);
    while (result < 0 && errno == EAGAIN); /* until whoever is changing mappings is done */
    return result < 0 ? -errno : 0;
}

/*
 * UFFDIO_CONTINUE changes nothing in private anonymous memory.  It fails with ENOENT if the range
 * is not one registered mapping, and only then, with another error, because the memory is of that
 * kind.
 */
bool os_uffd_is_registered(int fd, uintptr_t address, uint64_t n)
{
    struct uffdio_continue request = {.range = {address, bytes_of(n)}};
    return ioctl(fd, UFFDIO_CONTINUE, &request) < 0 && errno != ENOENT;
}

/* The page of a file that is not mapped yet is mapped by that, which changes no byte. */
bool os_uffd_is_of_any(int fd, uintptr_t page)
{
    struct uffdio_continue request = {.range = {page, PAGE_SIZE}};
    return ioctl(fd, UFFDIO_CONTINUE, &request) == 0 || errno != ENOENT;
}

int os_uffd_read(int fd, uintptr_t *start, uintptr_t *end)
{
    struct uffd_msg message;
    ssize_t got;
    do
        got = read(fd, &message, sizeof message);
    while (got < 0 && errno == EINTR);
    if (got != (ssize_t)sizeof message)
        return OS_UFFD_NOTHING;
    if (message.event == UFFD_EVENT_REMOVE) {
        *start = (uintptr_t)message.arg.remove.start;
        *end = (uintptr_t)message.arg.remove.end;
        return OS_UFFD_REMOVE;
    }
    if (message.event != UFFD_EVENT_PAGEFAULT)
        return OS_UFFD_OTHER;
    *start = (uintptr_t)message.arg.pagefault.address & ~(PAGE_SIZE - 1);
    *end = *start + PAGE_SIZE;
    return OS_UFFD_FAULT;
}
