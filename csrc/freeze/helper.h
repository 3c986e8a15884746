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
/* Tells it to end by its eventfd, if the program has not closed that, and waits for it; or it has none. */
void helper_end(struct helper *helper, int stop_fd, bool open);

#endif
