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
void helper_join(struct helper *helper); /* waits for the end of one that runs */

#endif
