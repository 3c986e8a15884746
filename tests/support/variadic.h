/*
 * For functions that stand in for syscall(): the six arguments behind `last` that any call may have, in
 * a[].  They are taken also where the caller has given fewer, which the address sanitizer must not see.
 */
#ifndef TESTS_SUPPORT_VARIADIC_H
#define TESTS_SUPPORT_VARIADIC_H

#include <stdarg.h>

#define TAKE_ARGUMENTS(a, last)                                                                    \
    long a[6];                                                                                     \
    do {                                                                                           \
        va_list rest;                                                                              \
        va_start(rest, last);                                                                      \
        for (int i = 0; i < 6; i++)                                                                \
            (a)[i] = va_arg(rest, long);                                                           \
        va_end(rest);                                                                              \
    } while (0)

#endif
