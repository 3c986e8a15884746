/*
 * What libraries call instead of the C library's functions that copy between processes (the kernel's
 * CROSS_MEMORY_ATTACH; see freeze/retries.h).
 *
 * Some call them by their numbers, with syscall(): torch's processes read each other's tensors so.
 * All else that is called so goes on to the C library as if nobody had been in between, with the stack
 * and the registers as they are: a thread that syscall() makes by clone() returns from it on a stack of
 * its own, where there is no frame of ours to return to.
 */
#ifndef KSMPY_FREEZE_CROSS_MEMORY_H
#define KSMPY_FREEZE_CROSS_MEMORY_H

#include <sys/types.h>
#include <sys/uio.h>

ssize_t cross_memory_process_vm_readv(pid_t pid, const struct iovec *here, unsigned long count,
                                      const struct iovec *there, unsigned long there_count,
                                      unsigned long flags);
ssize_t cross_memory_process_vm_writev(pid_t pid, const struct iovec *here, unsigned long count,
                                       const struct iovec *there, unsigned long there_count,
                                       unsigned long flags);

#if defined(__x86_64__) && defined(__LP64__)
#define CROSS_MEMORY_BY_NUMBER 1
#define CROSS_MEMORY_OURS __attribute__((visibility("hidden")))

CROSS_MEMORY_OURS long cross_memory_syscall(long number, ...);
/* What it jumps to with the number of one of the two, and all else that syscall() was given. */
CROSS_MEMORY_OURS long cross_memory_by_number(long number, pid_t pid, const struct iovec *here,
                                              unsigned long count, const struct iovec *there,
                                              unsigned long there_count, unsigned long flags);
#endif

#endif
