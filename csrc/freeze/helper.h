/* A thread of the freezer's own, which the program does not notice. */
#ifndef KSMPY_FREEZE_HELPER_H
#define KSMPY_FREEZE_HELPER_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct helper {
    pthread_t thread;
    bool runs;
    uintptr_t stack;
    size_t stack_bytes;
};

/* 0 or -errno.  It gets no signal, and its stack is memory that is never adopted. */
int helper_start(struct helper *helper, void *(*work)(void *), void *argument);
/*
 * Ends the thread and waits for that: tells it by its eventfd, or cancels it if the program has
 * closed that (open is false).  Does nothing if it does not run.
 */
void helper_end(struct helper *helper, int stop_fd, bool open);
/*
 * Waits so long for a thread that was told to end; false: it has not, and is left to itself.
 */
bool helper_end_within(struct helper *helper, unsigned ms);

#endif
