/*
 * A preloaded library that stops one thread, or its whole process, at one call
 * of one shared object, so that a test can do something exactly then.
 *
 * Calls are recognised by their return address.  The chosen thread waits
 * before the nth call of the chosen function until it is let go; or it stops
 * the process there, for another one to look at, to kill or to continue.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "target.h"
#include "variadic.h"

enum { ROBUST = 16, MAX_LOG = 1 << 14 }; /* in a mutex's kind, as glibc has it */

static const char *function;
static pid_t thread;
static int limit;
static bool only_locked; /* count calls while the thread holds a robust mutex: a store's lock */
static bool stop_all;
static atomic_int_fast64_t left;
static sem_t reached, go;
static __thread int locks;

static atomic_uint_fast64_t logged;
static struct {
    const char *name;
    uint64_t site;
    int locked;
} call_log[MAX_LOG];

int pause_target(const char *part)
{
    sem_init(&reached, 0, 0);
    sem_init(&go, 0, 0);
    return choose_target(part);
}

static int wait_for(sem_t *semaphore, int milliseconds)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += milliseconds / 1000;
    until.tv_nsec += milliseconds % 1000 * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000L;
    }
    return sem_timedwait(semaphore, &until);
}

static void arm(const char *name, int64_t nth, int tid, bool locked, bool all)
{
    atomic_store(&left, 0);
    function = name;
    thread = tid;
    only_locked = locked;
    stop_all = all;
    atomic_store(&logged, 0);
    atomic_store(&left, nth);
}

/*
 * A function is named by the beginning of its name, which must stay valid.
 * nth counts from 1. The thread goes on after that many milliseconds anyway.
 */
void pause_arm(const char *name, int64_t nth, int tid, int milliseconds)
{
    while (sem_trywait(&go) == 0)
        ; /* of a thread that did not wait for it */
    limit = milliseconds;
    arm(name, nth, tid, false, false);
}

/* The whole process is stopped by SIGSTOP, and goes on by SIGCONT. */
void pause_arm_process(const char *name, int64_t nth, int tid, int locked)
{
    arm(name, nth, tid, locked, true);
}

/* How many calls were counted since then, and what call n (from 0) was. */
uint64_t pause_calls(void)
{
    return atomic_load(&logged);
}

const char *pause_call(uint64_t n, uint64_t *site, int *locked)
{
    if (n >= pause_calls() || n >= MAX_LOG)
        return NULL;
    *site = call_log[n].site;
    *locked = call_log[n].locked;
    return call_log[n].name;
}

/* 0 when the thread waits at the call; -1 when it has not come there by then. */
int pause_wait(int milliseconds)
{
    return wait_for(&reached, milliseconds);
}

void pause_go(void)
{
    atomic_store(&left, 0);
    sem_post(&go);
}

static void note(const char *name, uintptr_t site)
{
    uint64_t n = atomic_fetch_add(&logged, 1);

    if (n >= MAX_LOG)
        return;
    call_log[n].name = name;
    call_log[n].site = site - target_start;
    call_log[n].locked = locks > 0;
}

static void maybe_stop(const char *name, void *return_address)
{
    uintptr_t site = (uintptr_t)return_address;

    if (atomic_load(&left) <= 0 || !in_target(site) || gettid() != thread ||
        strncmp(name, function, strlen(function)) != 0 || (only_locked && !locks))
        return;
    note(name, site);
    if (atomic_fetch_sub(&left, 1) != 1)
        return;
    if (stop_all) {
        kill(getpid(), SIGSTOP);
        return;
    }
    sem_post(&reached);
    while (wait_for(&go, limit) < 0 && errno == EINTR)
        ;
}

#define STOP_OR_GO_ON_AS(name, says)                                                               \
    static __typeof__(&name) real;                                                                 \
    if (!real)                                                                                     \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                                         \
    maybe_stop(says, __builtin_return_address(0))

#define STOP_OR_GO_ON(name) STOP_OR_GO_ON_AS(name, #name)

/* ---- address space ---- */

static const char *name_of(long number, long flags)
{
    switch (number) {
    case SYS_mmap:
        return flags & MAP_FIXED ? "mmap(MAP_FIXED)" : "mmap";
    case SYS_mremap:
        return "mremap";
    case SYS_munmap:
        return "munmap";
    default:
        return NULL;
    }
}

/* The extension makes these calls by their numbers. */
long syscall(long number, ...)
{
    static __typeof__(&syscall) real;
    TAKE_ARGUMENTS(a, number);

    if (!real)
        real = (__typeof__(&syscall))dlsym(RTLD_NEXT, "syscall");
    if (name_of(number, a[3]))
        maybe_stop(name_of(number, a[3]), __builtin_return_address(0));
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* ---- files ---- */

int open(const char *path, int flags, ...)
{
    va_list rest;
    mode_t mode;

    va_start(rest, flags);
    mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    STOP_OR_GO_ON(open);
    return real(path, flags, mode);
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    STOP_OR_GO_ON_AS(fallocate,
                     mode & FALLOC_FL_PUNCH_HOLE ? "fallocate(PUNCH_HOLE)" : "fallocate");
    return real(fd, mode, offset, length);
}

int ftruncate(int fd, off_t length)
{
    STOP_OR_GO_ON(ftruncate);
    return real(fd, length);
}

off_t lseek(int fd, off_t offset, int whence)
{
    STOP_OR_GO_ON(lseek);
    return real(fd, offset, whence);
}

ssize_t pread(int fd, void *to, size_t bytes, off_t offset)
{
    STOP_OR_GO_ON(pread);
    return real(fd, to, bytes, offset);
}

ssize_t pwrite(int fd, const void *from, size_t bytes, off_t offset)
{
    STOP_OR_GO_ON(pwrite);
    return real(fd, from, bytes, offset);
}

/* ---- locks ---- */

static void count_lock(const pthread_mutex_t *mutex, int error)
{
    if (mutex->__data.__kind & ROBUST && (error == 0 || error == EOWNERDEAD))
        locks++;
}

int pthread_mutex_lock(pthread_mutex_t *mutex)
{
    STOP_OR_GO_ON(pthread_mutex_lock);
    int error = real(mutex);
    count_lock(mutex, error);
    return error;
}

int pthread_mutex_trylock(pthread_mutex_t *mutex)
{
    STOP_OR_GO_ON(pthread_mutex_trylock);
    int error = real(mutex);
    count_lock(mutex, error);
    return error;
}

int pthread_mutex_unlock(pthread_mutex_t *mutex)
{
    STOP_OR_GO_ON(pthread_mutex_unlock);
    if (mutex->__data.__kind & ROBUST)
        locks--;
    return real(mutex);
}

/* ---- clocks: that of the wall may jump ---- */

int clock_gettime(clockid_t clock, struct timespec *now)
{
    STOP_OR_GO_ON_AS(clock_gettime,
                     clock == CLOCK_MONOTONIC ? "clock monotonic" : "clock of the wall");
    return real(clock, now);
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    STOP_OR_GO_ON_AS(gettimeofday, "clock of the wall");
    return real(now, zone);
}

time_t time(time_t *now)
{
    STOP_OR_GO_ON_AS(time, "clock of the wall");
    return real(now);
}
