/*
 * Is another thread in a system call that reads or writes these pages, or about to make one?
 */
#ifndef KSMPY_OS_CALLS_H
#define KSMPY_OS_CALLS_H

#include <stdbool.h>
#include <stdint.h>

#define OS_RUNNERS 64

/* Threads that were running, with the processor time that they had taken; all 0 at first. */
struct os_runners {
    struct os_runner {
        long thread;
        uint64_t user, system; /* in ticks */
        uint64_t since; /* ns */
    } known[OS_RUNNERS];
};

/*
 * Ask before the pages are frozen, while no thread that waits can go on.  `ours` is a thread that
 * is not looked at, besides the one that asks.  A thread that runs counts as in such a call, unless
 * it was seen to have computed for so long that it very likely still does.  0: there is none;
 * -EAGAIN: there are only such that run; -EBUSY: there is one, or nobody can tell; -EMFILE,
 * -ENFILE: for want of a descriptor.
 */
int os_calls(struct os_runners *runners, int tasks_fd, long ours, uintptr_t address, uint64_t n);

/*
 * Does the kernel write to any other thread's own data there, whatever that thread does
 * (os/thread_data.h)?  false also where the threads cannot be listed.
 */
bool os_is_thread_data(int tasks_fd, uintptr_t address, uint64_t n);

#endif
