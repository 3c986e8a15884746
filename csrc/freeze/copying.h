/*
 * What libraries call instead of the C library's functions that copy between processes (see
 * freeze/retries.h).
 *
 * Some call them by their numbers, with syscall(): torch's processes read each other's tensors so.
 * All else that is called so goes on to the C library as if nobody had been in between, with the stack
 * and the registers as they are: a thread that syscall() makes by clone() returns from it on a stack of
 * its own, where there is no frame of ours to return to.
 */
#ifndef KSMPY_FREEZE_COPYING_H
#define KSMPY_FREEZE_COPYING_H

#include <sys/types.h>
#include <sys/uio.h>

ssize_t copying_process_vm_readv(pid_t pid, const struct iovec *here, unsigned long count,
                                 const struct iovec *there, unsigned long there_count,
                                 unsigned long flags);
ssize_t copying_process_vm_writev(pid_t pid, const struct iovec *here, unsigned long count,
                                  const struct iovec *there, unsigned long there_count,
                                  unsigned long flags);

#if defined(__x86_64__) && defined(__LP64__)
#define COPYING_BY_NUMBER 1
#define COPYING_OURS __attribute__((visibility("hidden")))

COPYING_OURS long copying_syscall(long number, ...);
/* What it jumps to, with all that syscall() was given. */
COPYING_OURS long copying_by_number_process_vm_readv(long number, pid_t pid,
                                                     const struct iovec *here, unsigned long count,
                                                     const struct iovec *there,
                                                     unsigned long there_count,
                                                     unsigned long flags);
COPYING_OURS long copying_by_number_process_vm_writev(long number, pid_t pid,
                                                      const struct iovec *here, unsigned long count,
                                                      const struct iovec *there,
                                                      unsigned long there_count,
                                                      unsigned long flags);
#endif

#endif
