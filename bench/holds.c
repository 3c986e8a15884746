/*
 * How long an engine's lock is held on while another thread asks for it, again and again: holds FREEZE
 * TRACKING MIB MIB prints a line "wall cpu what" in ns for each thing that an engine does, with that
 * much memory nobody has touched and that much of equal pages.  A hold counts from the moment in which
 * it was asked for: where nobody waits a slice is longer.  Linked with --wrap for the mutexes, so that
 * each holder is timed.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "engine/engine.h"
#include "engine/locks.h"
#include "ksmpy.h"
#include "os/clock.h"

int __real_pthread_mutex_lock(pthread_mutex_t *mutex);
int __real_pthread_mutex_unlock(pthread_mutex_t *mutex);

static pthread_mutex_t *watched;
static clockid_t worker; /* the processor time of the thread that does these things */
static uint64_t locked_wall, locked_cpu, longest_wall, longest_cpu;
static _Atomic uint64_t asked_wall, asked_cpu; /* since when the lock is asked for; 0: it is not */
static _Thread_local bool asks;

static uint64_t now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* Whoever asks has said so before (engine_lock), so that the holder knows of it from here on. */
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
    if (mutex == watched && asks) {
        atomic_store(&asked_cpu, now(worker));
        atomic_store(&asked_wall, now(CLOCK_MONOTONIC));
    }
    int error = __real_pthread_mutex_lock(mutex);
    if (mutex == watched && asks) {
        atomic_store(&asked_wall, 0);
    } else if (mutex == watched) {
        locked_wall = now(CLOCK_MONOTONIC);
        locked_cpu = now(worker);
    }
    return error;
}

static uint64_t later(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static void note_hold(void)
{
    uint64_t asked = atomic_exchange(&asked_wall, 0);
    if (!asked)
        return;
    uint64_t held = now(CLOCK_MONOTONIC) - later(locked_wall, asked);
    uint64_t worked = now(worker) - later(locked_cpu, atomic_load(&asked_cpu));
    longest_wall = later(longest_wall, held);
    longest_cpu = later(longest_cpu, worked);
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex)
{
    if (mutex == watched && !asks)
        note_hold();
    return __real_pthread_mutex_unlock(mutex);
}

#define PAUSE_US 50

/* Holds the lock for as little as can be. */
static void *ask(void *engine)
{
    asks = true;
    for (;;) {
        engine_lock(engine);
        engine_unlock(engine);
        os_sleep_us(PAUSE_US);
    }
    return NULL;
}

static void must(int64_t result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror((int)-result));
        exit(1);
    }
    printf("%llu %llu %s\n", (unsigned long long)longest_wall, (unsigned long long)longest_cpu,
           what);
    longest_wall = longest_cpu = 0;
}

static uint8_t *memory(uint64_t bytes)
{
    void *got = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return got == MAP_FAILED ? NULL : got;
}

/* Every page unlike the others of its array. */
static void fill(uint8_t *at, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes; i += 8)
        *(uint64_t *)(void *)(at + i) = (i + 1) * 0x9e3779b97f4a7c15;
}

static int64_t pass(ksmpy_engine *engine, int flags)
{
    struct ksmpy_scan_result result = {0};
    int error = 0;
    for (flags |= KSMPY_SCAN_RESTART; !error && !result.full; flags &= ~KSMPY_SCAN_RESTART)
        error = ksmpy_scan(engine, 8192, flags, &result);
    return error;
}

int main(int count, char **words)
{
    if (count != 5)
        return 2;
    struct ksmpy_options options = {
        .freeze = atoi(words[1]), .tracking = atoi(words[2]), .nodes = 1};
    uint64_t sparse = strtoull(words[3], NULL, 10) << 20, bytes = strtoull(words[4], NULL, 10)
                                                                  << 20;
    uint8_t *untouched = memory(sparse), *one = memory(bytes), *two = memory(bytes);
    struct ksmpy_stats stats;
    struct ksmpy_region_stats region;
    uint32_t big, a, b, lost[1];
    ksmpy_engine *engine;
    pthread_t asker;
    if (!untouched || !one || !two || ksmpy_engine_new(&options, &engine) < 0)
        return 1;
    fill(one, bytes);
    fill(two, bytes);
    if (pthread_getcpuclockid(pthread_self(), &worker))
        return 1;
    if (pthread_create(&asker, NULL, ask, engine))
        return 1;
    watched = &engine->lock;
    must(ksmpy_register(engine, (uintptr_t)untouched, sparse, 0, &big), "register, untouched");
    must(ksmpy_register(engine, (uintptr_t)one, bytes, 0, &a), "register");
    must(ksmpy_register(engine, (uintptr_t)two, bytes, 0, &b), "register, again");
    must(pass(engine, KSMPY_SCAN_EAGER), "merge");
    must(pass(engine, 0), "pass");
    must(ksmpy_refresh(engine), "settle counters");
    must(ksmpy_stats(engine, &stats), "stats");
    must(ksmpy_region_stats(engine, a, &region, &stats), "region.stats");
    must(ksmpy_find_lost(engine, lost, 1), "look for lost memory");
    must(ksmpy_unmerge_region(engine, a), "unmerge");
    must(pass(engine, KSMPY_SCAN_EAGER), "merge, again");
    must(ksmpy_release(engine, a, 0), "release");
    must(ksmpy_release(engine, b, 1), "owner dies");
    must(ksmpy_release(engine, big, 0), "release, untouched");
    return 0;
}
