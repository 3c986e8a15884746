/* For functions that stand in for mremap: where it moves to, or NULL where the kernel chooses. */
#ifndef TESTS_SUPPORT_MREMAP_H
#define TESTS_SUPPORT_MREMAP_H

#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>

#define MREMAP_TARGET(to, flags)                                                                   \
    do {                                                                                           \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        (to) = (flags) & MREMAP_FIXED ? va_arg(rest, void *) : NULL;                               \
        va_end(rest);                                                                              \
    } while (0)

#endif
