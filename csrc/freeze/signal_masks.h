/*
 * What libraries call instead of the C library's functions that block signals (see freeze/retries.h).
 *
 * Where pages are frozen with the rights of memory (freeze/signal.c), a writer waits in a handler of
 * SIGSEGV, and the kernel ends a process of which a thread faults with that signal blocked.  Threads
 * of libraries block all signals as a rule, to leave them to others: they get all but this one.
 */
#ifndef KSMPY_FREEZE_SIGNAL_MASKS_H
#define KSMPY_FREEZE_SIGNAL_MASKS_H

#include <signal.h>

int signal_masks_pthread_sigmask(int how, const sigset_t *set, sigset_t *before);
int signal_masks_sigprocmask(int how, const sigset_t *set, sigset_t *before);
int signal_masks_sigsuspend(const sigset_t *set);

#endif
