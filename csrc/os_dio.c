/*
 * Is a device writing into these pages?
 *
 * A read from a file opened with O_DIRECT lets the device write to memory
 * behind the page tables, where no freezing can see it.  The kernel tells only
 * UFFDIO_MOVE about it.  For everything else we look what the other threads
 * are doing: one that waits in a read of that kind shows the system call and
 * its arguments in /proc/self/task/TID/syscall.  Called when the pages can no
 * longer be written (frozen, or protected), so no new read can begin on them.
 *
 * A thread on a processor shows only "running".  It may be about to wait for
 * such a read, so it is looked at again for a while; one that runs all that
 * time is computing.
 *
 * Not seen: reads that no thread waits for (libaio, io_uring) and memory that
 * is pinned for long (RDMA, GPUs).
 */
#include "os.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOOKS 6
#define BETWEEN_LOOKS_US 20

enum activity { ELSEWHERE, RUNNING, READING_INTO };

struct entry { /* struct linux_dirent64 */
    uint64_t inode;
    int64_t next;
    uint16_t length;
    uint8_t type;
    char name[];
};

static bool is_direct(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && (flags & O_DIRECT);
}

/* "nr arg0 arg1 ..." of a thread that waits in a system call. */
static enum activity judge(const char *text, uintptr_t start, uintptr_t end)
{
    char *at;
    if (strncmp(text, "running", 7) == 0)
        return RUNNING;
    long number = strtol(text, &at, 10);
    int fd = (int)strtoul(at, &at, 16);
    uintptr_t buffer = strtoul(at, &at, 16);
    size_t length = strtoul(at, &at, 16);
    switch (number) {
    case SYS_read:
    case SYS_pread64:
        return buffer < end && start < buffer + length && is_direct(fd) ? READING_INTO : ELSEWHERE;
    case SYS_readv: /* its list of buffers may lie in memory that must not be touched now */
    case SYS_preadv:
    case SYS_preadv2:
        return is_direct(fd) ? READING_INTO : ELSEWHERE;
    default:
        return ELSEWHERE;
    }
}

static enum activity look_at(int tasks_fd, const char *thread, uintptr_t start, uintptr_t end)
{
    char path[32], text[256];
    snprintf(path, sizeof path, "%.16s/syscall", thread);
    int fd = openat(tasks_fd, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? ELSEWHERE : RUNNING; /* gone, or unknown */
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    if (got <= 0)
        return ELSEWHERE;
    text[got] = 0;
    return judge(text, start, end);
}

/* The worst of what the threads but this one do. */
static enum activity look(int tasks_fd, uintptr_t start, uintptr_t end)
{
    _Alignas(struct entry) char buffer[4096];
    enum activity worst = ELSEWHERE;
    long self = syscall(SYS_gettid), got;
    lseek(tasks_fd, 0, SEEK_SET);
    while ((got = syscall(SYS_getdents64, tasks_fd, buffer, sizeof buffer)) > 0)
        for (long at = 0; at < got;) {
            const struct entry *entry = (const struct entry *)(buffer + at);
            at += entry->length;
            if (entry->name[0] == '.' || strtol(entry->name, NULL, 10) == self)
                continue;
            enum activity activity = look_at(tasks_fd, entry->name, start, end);
            worst = activity > worst ? activity : worst;
            if (worst == READING_INTO)
                return worst;
        }
    return worst;
}

int os_tasks_open(void)
{
    int fd = open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

bool os_direct_io(int tasks_fd, uintptr_t address, uint64_t n)
{
    for (int i = 0; i < LOOKS; i++) {
        enum activity activity = look(tasks_fd, address, address + bytes_of(n));
        if (activity != RUNNING)
            return activity == READING_INTO;
        os_sleep_us(BETWEEN_LOOKS_US);
    }
    return false;
}
