/*
 * A preloaded library that lets the fault thread answer one fault too late.
 *
 * While a range is frozen the reader touches it, and the fault thread is told;
 * it is held until the engine is about to wake whoever waits.  Then it may read
 * the fault, but answer it only when the range is thawed and tracked.  Meanwhile
 * the writer breaks copy-on-write of the first page, so that the engine's own
 * reading maps no page beside it, and the reader is kept in a signal handler, so
 * that it maps none either.  What an answer does to a page that no page table
 * knows shows afterwards.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mremap.h"

#define PAGE 4096
#define READ_AT 3         /* the page that the reader wants */
#define MOVE 0xc028aa05ul /* UFFDIO_MOVE, which is newer than some headers */

enum { IDLE, ARMED, FROZEN, WAKING, WOKEN, TRACKED, OVER };

static _Atomic int phase;
static _Atomic bool queued;  /* the reader's fault is there to be read */
static _Atomic bool caught;  /* the fault thread has read it */
static _Atomic bool kept;    /* the reader is in its signal handler */
static _Atomic bool written; /* the writer has written */
static _Atomic int seen = -1;
static uintptr_t base;
static size_t length;
static pthread_t writer, reader;
static __thread bool is_fault_thread;

static void wait_for(_Atomic bool *flag)
{
    while (!atomic_load(flag))
        usleep(100);
}

static void wait_phase(int wanted)
{
    while (atomic_load(&phase) < wanted)
        usleep(100);
}

static void keep(int number)
{
    (void)number;
    atomic_store(&kept, true);
    wait_phase(OVER);
}

static void *write_first(void *unused)
{
    wait_phase(WAKING);
    ((volatile uint8_t *)base)[8] = 7;
    atomic_store(&written, true);
    return unused;
}

static void *read_later(void *unused)
{
    wait_phase(FROZEN);
    atomic_store(&seen, ((volatile uint8_t *)base)[READ_AT * PAGE]);
    return unused;
}

void late_arm(void *address, size_t bytes)
{
    base = (uintptr_t)address;
    length = bytes;
    signal(SIGUSR1, keep);
    pthread_create(&writer, NULL, write_first, NULL);
    pthread_create(&reader, NULL, read_later, NULL);
    atomic_store(&phase, ARMED);
}

/* What the reader saw; -1: the engine never came to the place. */
int late_result(void)
{
    if (atomic_load(&phase) != OVER)
        return -1;
    pthread_join(writer, NULL);
    pthread_join(reader, NULL);
    return atomic_load(&seen);
}

int poll(struct pollfd *fds, nfds_t count, int timeout)
{
    int (*real)(struct pollfd *, nfds_t, int) = dlsym(RTLD_NEXT, "poll");
    is_fault_thread |= count == 2 && timeout == -1;
    if (is_fault_thread && atomic_load(&phase) == TRACKED)
        atomic_store(&phase, OVER);
    int result = real(fds, count, timeout);
    if (is_fault_thread && atomic_load(&phase) == FROZEN) {
        atomic_store(&queued, true);
        wait_phase(WAKING);
    }
    return result;
}

ssize_t read(int fd, void *to, size_t bytes)
{
    ssize_t (*real)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
    ssize_t got = real(fd, to, bytes);
    if (is_fault_thread && got > 0 && atomic_load(&phase) == WAKING)
        atomic_store(&caught, true);
    return got;
}

int pthread_mutex_trylock(pthread_mutex_t *mutex)
{
    int (*real)(pthread_mutex_t *) = dlsym(RTLD_NEXT, "pthread_mutex_trylock");
    if (is_fault_thread && atomic_load(&caught))
        wait_phase(TRACKED);
    return real(mutex);
}

/* The range is frozen now. */
static void on_freeze(void)
{
    atomic_store(&phase, FROZEN);
    wait_for(&queued);
}

static void before_wake(void)
{
    atomic_store(&phase, WAKING);
    wait_for(&caught);
    pthread_kill(reader, SIGUSR1);
    wait_for(&kept);
    wait_for(&written);
}

static void on_register(void)
{
    atomic_store(&phase, TRACKED);
    wait_phase(OVER);
}

static bool expects(int wanted, uintptr_t address, size_t bytes)
{
    return !is_fault_thread && atomic_load(&phase) == wanted && address == base && bytes == length;
}

void *mremap(void *from, size_t before, size_t after, int flags, ...)
{
    void *(*real)(void *, size_t, size_t, int, ...) = dlsym(RTLD_NEXT, "mremap");
    void *to;
    MREMAP_TARGET(to, flags);
    void *result = real(from, before, after, flags, to);
    if (result != MAP_FAILED && expects(ARMED, (uintptr_t)from, before))
        on_freeze();
    return result;
}

int ioctl(int fd, unsigned long request, ...)
{
    int (*real)(int, unsigned long, ...) = dlsym(RTLD_NEXT, "ioctl");
    va_list rest;
    va_start(rest, request);
    uint64_t *words = va_arg(rest, uint64_t *);
    va_end(rest);
    bool wakes = request == UFFDIO_WAKE && expects(FROZEN, words[0], words[1]);
    if (wakes)
        before_wake();
    int result = real(fd, request, words), error = errno;
    if (wakes)
        atomic_store(&phase, WOKEN);
    else if (request == MOVE && result == 0 && expects(ARMED, words[1], words[2]))
        on_freeze();
    else if (request == UFFDIO_REGISTER && expects(WOKEN, words[0], words[1]))
        on_register();
    errno = error;
    return result;
}
