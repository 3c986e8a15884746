/*
 * Is a device writing into these pages?
 *
 * A read from a file opened with O_DIRECT lets the device write to memory
 * behind the page tables, where no freezing can see it; some file systems read
 * so without being asked (FUSE, 9p).  The kernel tells only UFFDIO_MOVE about
 * it, and nobody about 9p, which does not pin its pages for good.  For
 * everything else we look what the other threads are doing: one that waits in
 * a read shows that (os/tasks.c).  Called when the pages can no longer be written
 * (frozen, or protected), so no new read can begin on them.
 *
 * A thread that runs all the time that it is looked at may be in such a read all
 * the same: it polls for its end, or was preempted before it could wait.  Nobody
 * tells, so it is taken to be reading if the process has a file open by which it
 * could be.
 *
 * Not seen: reads that no thread waits for (libaio, io_uring) and memory that
 * is pinned for long (RDMA, GPUs).
 */
#include "os/direct_io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/pages.h"
#include "os/apart.h"
#include "os/entries.h"
#include "os/tasks.h"

/* File systems that read through the page cache unless they are told otherwise (linux/magic.h). */
static bool has_page_cache(long type)
{
    static const unsigned cached[] = {
        0xef53 /* ext2, 3, 4 */,   0x58465342 /* xfs */,   0x9123683e /* btrfs */,
        0xf2f52010 /* f2fs */,     0x01021994 /* tmpfs */, 0x858458f6 /* ramfs */,
        0x73717368 /* squashfs */, 0xe0f5e1e2 /* erofs */, 0x9660 /* iso9660 */,
        0x4d44 /* vfat */,         0x2011bab0 /* exfat */, 0x9fa0 /* proc */,
        0x62656572 /* sysfs */,
    };
    for (size_t i = 0; i < sizeof cached / sizeof cached[0]; i++)
        if ((unsigned)type == cached[i])
            return true;
    return false;
}

/* May a device, or another process, answer this read by writing into its buffer? */
static bool is_direct(int fd)
{
    struct stat info;
    struct statfs system;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || (flags & O_DIRECT))
        return true; /* another thread may have closed the descriptor during the read */
    return fstat(fd, &info) == 0 && S_ISREG(info.st_mode) &&
           (fstatfs(fd, &system) < 0 || !has_page_cache(system.f_type));
}

static enum os_activity judge(const struct os_question *question, const char *call)
{
    char *at;
    long number = strtol(call, &at, 10);
    int fd = (int)strtoul(at, &at, 16);
    uintptr_t buffer = os_untagged(strtoul(at, &at, 16));
    size_t length = strtoul(at, &at, 16);
    bool reads = number == SYS_read || number == SYS_pread64;
    bool scatters = number == SYS_readv || number == SYS_preadv || number == SYS_preadv2;
    if (reads && (buffer >= question->end || question->start >= buffer + length))
        return OS_ELSEWHERE;
    /* The buffers of readv() are not compared: their list may lie in memory that is frozen now. */
    return (reads || scatters) && is_direct(fd) ? OS_INVOLVED : OS_ELSEWHERE;
}

static bool is_read_direct(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && (flags & O_ACCMODE) != O_WRONLY && is_direct(fd);
}

/* What has_direct() does not see where descriptor 0 is not there. */
static bool is_input_direct(void)
{
    return is_read_direct(STDIN_FILENO);
}

static bool is_open_for_that(const char *name, void *nothing)
{
    (void)nothing;
    return is_read_direct((int)strtol(name, NULL, 10));
}

/*
 * Does the process have a file open by which a thread could read so?  true also where nobody can
 * tell.  The list is reached from the threads' directory, because the program may have changed its
 * root by now and see no /proc.
 */
static bool has_direct(struct os_question *question)
{
    int fds = openat(question->tasks_fd, "../fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fds < 0) {
        question->crowded = os_is_crowded(-errno) ? -errno : question->crowded;
        return true;
    }
    int found = os_each_entry(fds, is_open_for_that, NULL);
    close(fds);
    return found != 0;
}

int os_direct_io(int tasks_fd, uintptr_t address, uint64_t n)
{
    struct os_question question = {
        .tasks_fd = tasks_fd,
        .start = address,
        .end = address + bytes_of(n),
        .judge = judge,
        .judge_running = has_direct,
        .judge_input = is_input_direct,
        .by_state = true,
    };
    return os_ask_tasks(&question);
}
