/*
 * A preloaded library whose mremap fails for a while: one page onto an address
 * that was named, as if other threads had taken the last mappings meanwhile.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "variadic.h"

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

long syscall(long number, ...)
{
    long (*real)(long, ...) = dlsym(RTLD_NEXT, "syscall");
    TAKE_ARGUMENTS(a, number);

    if (number == SYS_mremap && a[3] & MREMAP_FIXED && (uintptr_t)a[4] == target && a[1] == PAGE &&
        atomic_load(&failures) > 0) {
        atomic_fetch_sub(&failures, 1);
        errno = ENOMEM;
        return -1;
    }
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
