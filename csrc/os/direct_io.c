/*
 * Is a device writing into these pages?
 *
 * A read from a file opened with O_DIRECT lets the device write to memory
 * behind the page tables, where no freezing can see it; some file systems read
 * so without being asked (FUSE, 9p).  The kernel tells only UFFDIO_MOVE about
 * it, and nobody about 9p, which does not pin its pages for good.  For
 * everything else we look what the other threads are doing: one that waits in
 * a read shows the system call and its arguments in
 * /proc/self/task/TID/syscall.  Called when the pages can no longer be written
 * (frozen, or protected), so no new read can begin on them.
 *
 * A process that has changed its user may not look at its own system calls.
 * Whether a thread waits for a disk it still may (TID/stat).
 *
 * A thread on a processor shows only "running".  It may be about to wait for
 * such a read, so it is looked at again for a while.  One that runs all that
 * time is computing, or in such a read all the same: it polls for its end, or
 * was preempted before it could wait.  Nobody tells, so it is taken to be
 * reading if the process has a file open by which it could be.
 *
 * Not seen: reads that no thread waits for (libaio, io_uring) and memory that
 * is pinned for long (RDMA, GPUs).
 */
#include "os/direct_io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/pages.h"
#include "os/apart.h"
#include "os/clock.h"
#include "os/entries.h"
#include "os/files.h"

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

/*
 * How often a thread that runs is looked at, and how many us apart: about 120 us in all, for which
 * pages stay frozen.  Fewer looks would leave more pages alone because a thread was just computing.
 */
#define LOOKS 6
#define BETWEEN_LOOKS_US 20

enum activity { ELSEWHERE, RUNNING, READING_INTO, UNKNOWN }; /* in order: the last is the worst */

/* What is asked, and by which thread. */
struct question {
    int tasks_fd;
    uintptr_t start, end;
    long asker;
    int crowded; /* why nobody could tell, if it was for want of a descriptor; or 0 */
    bool busy;   /* the answer */
};

/* Reads the beginning of a file of a thread's in /proc as text; its length, or -errno. */
static int tell(int tasks_fd, const char *thread, const char *what, char *text, size_t size)
{
    char path[32];
    snprintf(path, sizeof path, "%.16s/%s", thread, what);
    int fd = openat(tasks_fd, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t got = read(fd, text, size - 1);
    close(fd);
    text[got > 0 ? got : 0] = 0;
    return got < 0 ? -errno : (int)got;
}

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

/* text: "running", or "number argument0 argument1 ..." of the call that the thread waits in. */
static enum activity judge(const char *text, uintptr_t start, uintptr_t end)
{
    char *at;
    if (strncmp(text, "running", 7) == 0)
        return RUNNING;
    long number = strtol(text, &at, 10);
    int fd = (int)strtoul(at, &at, 16);
    uintptr_t buffer = strtoul(at, &at, 16);
    size_t length = strtoul(at, &at, 16);
    bool reads = number == SYS_read || number == SYS_pread64;
    bool scatters = number == SYS_readv || number == SYS_preadv || number == SYS_preadv2;
    if (reads && (buffer >= end || start >= buffer + length))
        return ELSEWHERE;
    /* The buffers of readv() are not compared: their list may lie in memory that is frozen now. */
    return (reads || scatters) && is_direct(fd) ? READING_INTO : ELSEWHERE;
}

/* text: "tid (name) state ...".  State D is an uninterruptible wait, as for a disk. */
static enum activity judge_state(const char *text)
{
    const char *name_end = strrchr(text, ')');
    char state = name_end && name_end[1] ? name_end[2] : 0;
    return state == 'D' ? READING_INTO : state == 'R' ? RUNNING : ELSEWHERE;
}

static enum activity look_at(struct question *question, const char *thread)
{
    char text[256];
    int got = tell(question->tasks_fd, thread, "syscall", text, sizeof text);
    if (got >= 0)
        return judge(text, question->start, question->end);
    if (got == -EACCES || got == -EPERM) {
        got = tell(question->tasks_fd, thread, "stat", text, sizeof text);
        if (got > 0)
            return judge_state(text);
    }
    if (os_is_crowded(got))
        question->crowded = got;
    return got == -ENOENT || got == -ESRCH ? ELSEWHERE : UNKNOWN;
}

struct round {
    struct question *question;
    long looker;
    enum activity worst;
};

static bool look_at_thread(const char *name, void *data)
{
    struct round *round = data;
    long thread = strtol(name, NULL, 10);
    if (thread == round->looker || thread == round->question->asker)
        return false;
    enum activity activity = look_at(round->question, name);
    round->worst = activity > round->worst ? activity : round->worst;
    return round->worst >= READING_INTO;
}

/* The worst of what the threads do, except the one that asks and the one that looks for it. */
static enum activity look(struct question *question)
{
    struct round round = {.question = question, .looker = syscall(SYS_gettid)};
    int seen = os_each_entry(question->tasks_fd, look_at_thread, &round);
    return seen < 0 ? UNKNOWN : round.worst;
}

/* ---- memory that is given back ---- */

/* Does the thread of this text, "number argument0 ...", wait in a madvise() that gives back? */
static bool is_removal(const char *text, struct os_removal *removal)
{
    char *at;
    if (strtol(text, &at, 10) != SYS_madvise)
        return false;
    removal->start = strtoul(at, &at, 16);
    removal->end = removal->start + bytes_of((strtoul(at, &at, 16) + PAGE_SIZE - 1) >> PAGE_SHIFT);
    unsigned long advice = strtoul(at, &at, 16);
    return advice == MADV_DONTNEED || advice == MADV_FREE || advice == MADV_DONTNEED_LOCKED;
}

struct removers {
    int tasks_fd;
    long looker;
    struct os_removal *found;
    int n, max;
    bool running;
};

static bool add_remover(const char *name, void *data)
{
    struct removers *removers = data;
    char text[256];
    long thread = strtol(name, NULL, 10);
    if (thread == removers->looker ||
        tell(removers->tasks_fd, name, "syscall", text, sizeof text) <= 0)
        return false;
    removers->running |= strncmp(text, "running", 7) == 0;
    if (is_removal(text, &removers->found[removers->n]))
        removers->found[removers->n++].thread = thread;
    return removers->n == removers->max;
}

int os_removals(int tasks_fd, struct os_removal *removals, int max, bool *running)
{
    struct removers removers = {
        .tasks_fd = tasks_fd, .looker = syscall(SYS_gettid), .found = removals, .max = max};
    os_each_entry(tasks_fd, add_remover, &removers);
    *running = removers.running;
    return removers.n;
}

bool os_may_remove(int tasks_fd, const struct os_removal *removal)
{
    char name[24], text[256];
    struct os_removal now;
    snprintf(name, sizeof name, "%ld", removal->thread);
    if (removal->thread == syscall(SYS_gettid))
        return false;
    int got = removal->thread ? tell(tasks_fd, name, "syscall", text, sizeof text) : -EACCES;
    if (got <= 0)
        return got != -ENOENT && got != -ESRCH;
    return strncmp(text, "running", 7) == 0 ||
           (is_removal(text, &now) && now.start == removal->start && now.end == removal->end);
}

bool os_has_locked_memory(int tasks_fd)
{
    char text[4096], name[24];
    snprintf(name, sizeof name, "%ld", (long)syscall(SYS_gettid));
    const char *line =
        tell(tasks_fd, name, "status", text, sizeof text) > 0 ? strstr(text, "VmLck:") : NULL;
    return !line || strtoul(line + 6, NULL, 10) != 0;
}

static bool is_read_direct(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && (flags & O_ACCMODE) != O_WRONLY && is_direct(fd);
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
static bool has_direct(struct question *question)
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

int os_tasks_open(void)
{
    return os_keep_off_standard(open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

static bool is_busy(struct question *question)
{
    for (int i = 0; i < LOOKS; i++) {
        enum activity activity = look(question);
        if (activity != RUNNING)
            return activity >= READING_INTO;
        os_sleep_us(BETWEEN_LOOKS_US);
    }
    return has_direct(question);
}

static void ask_apart(void *data)
{
    struct question *question = data;
    question->busy = is_busy(question);
}

int os_direct_io(int tasks_fd, uintptr_t address, uint64_t n)
{
    struct question question = {
        .tasks_fd = tasks_fd,
        .start = address,
        .end = address + bytes_of(n),
        .asker = syscall(SYS_gettid),
    };
    question.busy = is_busy(&question);
    /* os_apart() closes this descriptor in its table, so has_direct() would not see it there. */
    if (question.crowded && is_read_direct(STDIN_FILENO))
        return -EBUSY;
    if (question.crowded) {
        int crowded = question.crowded;
        question.crowded = 0;
        if (os_apart(ask_apart, &question) < 0)
            return crowded;
    }
    return question.busy && question.crowded ? question.crowded : question.busy ? -EBUSY : 0;
}
