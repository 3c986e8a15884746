/*
 * Alternate signal stacks, as a library in C sets them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>

/* 0 or -errno. */
int stacks_set(void *at, size_t n)
{
    stack_t stack = {.ss_sp = at, .ss_size = n};
    return sigaltstack(&stack, NULL) < 0 ? -errno : 0;
}

int stacks_disable(void)
{
    stack_t stack = {.ss_flags = SS_DISABLE};
    return sigaltstack(&stack, NULL) < 0 ? -errno : 0;
}
