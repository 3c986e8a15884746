#include "os/files.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/pages.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8
#endif

static int status(int result)
{
    return result < 0 ? -errno : 0;
}

/*
 * How many of so many bytes the process may write to a file there (RLIMIT_FSIZE).  With more than
 * that the kernel sends SIGXFSZ, which ends a program that does not ignore it as Python does.
 */
static uint64_t allowed(uint64_t offset, uint64_t bytes)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY)
        return bytes;
    return limit.rlim_cur > offset ? least(bytes, limit.rlim_cur - offset) : 0;
}

int os_set_size(int fd, uint64_t bytes)
{
    return allowed(0, bytes) < bytes ? -EFBIG : status(ftruncate(fd, (off_t)bytes));
}

int os_keep_off_standard(int fd)
{
    if (fd < 0)
        return -errno;
    if (fd > STDERR_FILENO)
        return fd;
    int higher = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    int error = -errno;
    close(fd);
    return higher < 0 ? error : higher;
}

int os_memfd(const char *name, size_t bytes)
{
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    int fd = memfd_create(name, flags | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
        fd = memfd_create(name, flags);
    fd = os_keep_off_standard(fd);
    if (fd < 0)
        return fd;
    int error = os_set_size(fd, bytes);
    if (error)
        close(fd);
    return error ? error : fd;
}

static int open_again(int fd, int flags)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/thread-self/fd/%d", fd);
    return open(path, flags | O_CLOEXEC);
}

int os_reopen(int fd, int flags)
{
    return os_keep_off_standard(open_again(fd, flags));
}

int os_reopen_anywhere(int fd, int flags)
{
    int again = open_again(fd, flags);
    return again < 0 ? -errno : again;
}

/*
 * The mode keeps others from opening the file for writing.  F_SEAL_FUTURE_WRITE would do that as
 * well, but with it no hole can be punched any more (EPERM, also for MADV_REMOVE).
 */
int os_seal(int memfd)
{
    int error = status(fcntl(memfd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL));
    if (!error)
        error = status(fchmod(memfd, S_IRUSR));
    return error ? error : os_reopen(memfd, O_RDONLY);
}

int os_pread(int fd, uint64_t offset, void *to, size_t bytes)
{
    ssize_t done;
    do
        done = pread(fd, to, bytes, (off_t)offset);
    while (done < 0 && errno == EINTR);
    return done < 0 ? -errno : done < (ssize_t)bytes ? -ENODATA : 0;
}

/* Flags that mean nothing for such files, and that nobody else opens one with. */
#define BRIEFLY (O_APPEND | O_NONBLOCK | O_DSYNC)

int os_open_briefly(int dir, const char *path)
{
    return openat(dir, path, O_RDONLY | O_CLOEXEC | BRIEFLY);
}

bool os_is_brief(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && (flags & (BRIEFLY | O_ACCMODE)) == BRIEFLY;
}

void os_close_brief(int fd)
{
    if (os_is_brief(fd))
        close(fd);
}

void os_read_text(const char *path, char *text, size_t size)
{
    int fd = os_open_briefly(AT_FDCWD, path);
    ssize_t got = fd < 0 ? 0 : read(fd, text, size - 1);
    text[got > 0 ? got : 0] = 0;
    if (fd >= 0)
        os_close_brief(fd);
}

void os_put(int fd, uint64_t offset, const void *from, size_t bytes)
{
    while (allowed(offset, bytes) && pwrite(fd, from, bytes, (off_t)offset) < 0 && errno == EINTR)
        ;
}

int64_t os_file_size(int fd)
{
    struct stat info;
    return fstat(fd, &info) < 0 ? -errno : (int64_t)info.st_size;
}

int64_t os_file_memory(int fd)
{
    struct stat info;
    return fstat(fd, &info) < 0 ? -errno : (int64_t)info.st_blocks * 512; /* stat(2) */
}

bool os_file_room(int fd, uint64_t *size, uint64_t *left)
{
    struct statfs system;
    if (fstatfs(fd, &system) < 0 || system.f_blocks == 0)
        return false;
    *size = system.f_blocks * (uint64_t)system.f_bsize / PAGE_SIZE;
    *left = system.f_bavail * (uint64_t)system.f_bsize / PAGE_SIZE;
    return true;
}

static int64_t pages_written(ssize_t done)
{
    if (done < 0)
        return -errno;
    return done < (ssize_t)PAGE_SIZE ? -ENOSPC : (int64_t)(done >> PAGE_SHIFT);
}

int64_t os_write(int fd, uint64_t offset, const void *from, uint64_t n)
{
    uint64_t bytes = allowed(offset, bytes_of(n));
    return bytes ? pages_written(pwrite(fd, from, bytes, (off_t)offset)) : -EFBIG;
}

int64_t os_write_from(int fd, uint64_t offset, const struct iovec *from, uint64_t n)
{
    n = allowed(offset, bytes_of(n)) >> PAGE_SHIFT;
    return n ? pages_written(pwritev(fd, from, (int)n, (off_t)offset)) : -EFBIG;
}

static int allocate(int fd, int mode, uint64_t offset, uint64_t bytes)
{
    int result;
    do
        result = fallocate(fd, mode, (off_t)offset, (off_t)bytes);
    while (result < 0 && errno == EINTR);
    return status(result);
}

int os_allocate(int fd, uint64_t offset, uint64_t bytes)
{
    return allocate(fd, 0, offset, bytes);
}

int os_punch(int fd, uint64_t offset, uint64_t bytes)
{
    return allocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes);
}

int os_identify(int fd, uint64_t *inode, uint64_t *dev)
{
    struct stat info;
    if (fstat(fd, &info) < 0)
        return -errno;
    *inode = info.st_ino;
    *dev = info.st_dev;
    return 0;
}

/*
 * An inode number does not tell our descriptors from all others: all eventfds and epolls share one,
 * and whoever opens /proc/self/maps again gets the same as we did.  So ours are marked, with the
 * number of the signal that would tell of input if anybody asked for signals (F_SETSIG in fcntl(2),
 * without O_ASYNC).
 */
#define MARK (_NSIG - 1)

static _Atomic bool cannot_mark; /* on this system */

int os_know_file(int fd, uint64_t *inode, uint64_t *dev)
{
    fcntl(fd, F_SETSIG, MARK);
    if (fcntl(fd, F_GETSIG) != MARK)
        atomic_store(&cannot_mark, true);
    return os_identify(fd, inode, dev);
}

static int is_file(int fd, uint64_t inode)
{
    uint64_t now, dev;
    int error = os_identify(fd, &now, &dev);
    if (error || now != inode || atomic_load(&cannot_mark))
        return error ? error : now == inode;
    int mark = fcntl(fd, F_GETSIG);
    return mark < 0 ? -errno : mark == MARK;
}

/*
 * An error is asked about twice, since the caller gives the descriptor up for good.  Only EBADF
 * says that it is closed; after any other error it is taken to be ours.
 */
bool os_is_file(int fd, uint64_t inode)
{
    int answer = is_file(fd, inode);
    if (answer < 0)
        answer = is_file(fd, inode);
    return answer < 0 ? answer != -EBADF : answer;
}

bool os_is_known(int fd)
{
    return atomic_load(&cannot_mark) || fcntl(fd, F_GETSIG) == MARK;
}

int os_try_lock(int fd, uint64_t number, bool exclusive)
{
    struct flock lock = {.l_type = exclusive ? F_WRLCK : F_RDLCK,
                         .l_whence = SEEK_SET,
                         .l_start = (off_t)number,
                         .l_len = 1};
    return status(fcntl(fd, F_OFD_SETLK, &lock));
}
