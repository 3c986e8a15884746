/*
 * A preloaded library that stands in for the functions which change mappings, as memory profilers do:
 * it has a lock while it makes the call, and holds that while it writes to memory that may merge.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>

#include "target.h"

enum { PAGE = 4096 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_uint_fast64_t calls; /* of one shared object */

int profiler_target(const char *part)
{
    return choose_target(part);
}

uint64_t profiler_calls(void)
{
    return atomic_load(&calls);
}

/* Writes to each page and takes it back, so that equal pages are equal whenever the lock is free. */
void profiler_write(volatile uint8_t *pages, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        pthread_mutex_lock(&lock);
        pages[i * PAGE] ^= 1;
        pages[i * PAGE] ^= 1;
        pthread_mutex_unlock(&lock);
    }
}

#define PASS_ON(name, ...)                                                                         \
    static __typeof__(&name) real;                                                                 \
    if (!real)                                                                                     \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                                         \
    if (in_target((uintptr_t)__builtin_return_address(0)))                                         \
        atomic_fetch_add(&calls, 1);                                                               \
    pthread_mutex_lock(&lock);                                                                     \
    __typeof__(real(__VA_ARGS__)) got = real(__VA_ARGS__);                                         \
    pthread_mutex_unlock(&lock);                                                                   \
    return got

void *mmap(void *address, size_t length, int prot, int flags, int fd, off_t offset)
{
    PASS_ON(mmap, address, length, prot, flags, fd, offset);
}

void *mmap64(void *address, size_t length, int prot, int flags, int fd, off64_t offset)
{
    PASS_ON(mmap64, address, length, prot, flags, fd, offset);
}

void *mremap(void *from, size_t before, size_t after, int flags, ...)
{
    va_list rest;

    va_start(rest, flags);
    void *to = va_arg(rest, void *);
    va_end(rest);
    PASS_ON(mremap, from, before, after, flags, to);
}

int munmap(void *address, size_t length)
{
    PASS_ON(munmap, address, length);
}

int mprotect(void *address, size_t length, int prot)
{
    PASS_ON(mprotect, address, length, prot);
}

int madvise(void *address, size_t length, int advice)
{
    PASS_ON(madvise, address, length, advice);
}
