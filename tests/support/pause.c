/*
 * A preloaded library that stops one thread at one call of one shared object,
 * so that a test can do something exactly then.
 *
 * Calls are recognised by their return address.  The chosen thread waits
 * before the nth call of the chosen function until it is let go.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "target.h"

static const char *function;
static pid_t thread;
static int limit;
static atomic_int_fast64_t left;
static sem_t reached, go;

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

/* name must stay valid. nth counts from 1. The thread goes on after that many milliseconds anyway. */
void pause_arm(const char *name, int64_t nth, int tid, int milliseconds)
{
    while (sem_trywait(&go) == 0)
        ; /* of a thread that did not wait for it */
    limit = milliseconds;
    function = name;
    thread = tid;
    atomic_store(&left, nth);
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

static void maybe_stop(const char *name, void *return_address)
{
    uintptr_t site = (uintptr_t)return_address;

    if (atomic_load(&left) <= 0 || !in_target(site) || gettid() != thread ||
        strcmp(name, function) != 0 || atomic_fetch_sub(&left, 1) != 1)
        return;
    sem_post(&reached);
    while (wait_for(&go, limit) < 0 && errno == EINTR)
        ;
}

#define STOP_OR_GO_ON(name)                                                                        \
    static __typeof__(&name) real;                                                                 \
    if (!real)                                                                                     \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                                         \
    maybe_stop(#name, __builtin_return_address(0))

void *mmap(void *address, size_t length, int prot, int flags, int fd, off_t offset)
{
    STOP_OR_GO_ON(mmap);
    return real(address, length, prot, flags, fd, offset);
}

void *mremap(void *from, size_t old_length, size_t new_length, int flags, ...)
{
    va_list rest;
    void *to;

    va_start(rest, flags);
    to = va_arg(rest, void *);
    va_end(rest);
    STOP_OR_GO_ON(mremap);
    return real(from, old_length, new_length, flags, to);
}

int pthread_mutex_lock(pthread_mutex_t *mutex)
{
    STOP_OR_GO_ON(pthread_mutex_lock);
    return real(mutex);
}
