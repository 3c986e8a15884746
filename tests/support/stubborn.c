/*
 * A preloaded library whose mremap fails for a while: one page onto an address
 * that was named, as if other threads had taken the last mappings meanwhile.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>

#include "mremap.h"

#define PAGE 4096

static uintptr_t target;
static _Atomic int failures; /* to come */

void stubborn_arm(void *address, int times)
{
    target = (uintptr_t)address;
    atomic_store(&failures, times);
}

int stubborn_left(void)
{
    return atomic_load(&failures);
}

void *mremap(void *from, size_t before, size_t after, int flags, ...)
{
    void *(*real)(void *, size_t, size_t, int, ...) = dlsym(RTLD_NEXT, "mremap");
    void *to;
    MREMAP_TARGET(to, flags);
    if (to && (uintptr_t)to == target && before == PAGE && atomic_load(&failures) > 0) {
        atomic_fetch_sub(&failures, 1);
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return real(from, before, after, flags, to);
}
