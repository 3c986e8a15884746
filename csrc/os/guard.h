/*
 * Guarded reads: of memory that its owner may unmap or protect meanwhile.
 *
 * Such a read faults.  Before it begins it leaves its addresses and a place to
 * go on in variables of its own thread; the handler of SIGSEGV and SIGBUS goes
 * on there when the fault is at one of these addresses, and hands on every
 * other fault.  That costs a read some nanoseconds; to let the kernel read
 * (process_vm_readv) takes two to three times as long as to read.
 */
#ifndef KSMPY_OS_GUARD_H
#define KSMPY_OS_GUARD_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/checksum.h"

struct checksum_key;

/*
 * Around guarded reads, once for many: the handler is in its place, and this thread does not block
 * its signals, which would kill instead.
 */
void guard_open(sigset_t *before);
void guard_close(const sigset_t *before);

/* ---- false: (a part of) the memory cannot be read ---- */

bool guard_checksum(const struct checksum_key *key, const void *page, uint64_t *sum);
bool guard_is_zero(const void *page, bool *zero);
/* As memcmp() of two pages. */
bool guard_compare(const void *one, const void *two, int *order);
/* The same, and -1 where it cannot be read: a hint until it is compared again while frozen. */
int compare_live(const void *a, const void *b);
bool guard_copy(void *to, const void *from, size_t bytes);
/* One byte of each address in [start, end) that is the first of a piece of so many bytes, and of start. */
bool guard_touch(uintptr_t start, uintptr_t end, size_t piece);

/* ---- memory that a system call was given ---- */

/*
 * Copies to or from memory that the program has named to a call which is led to the engine: false:
 * it has no such memory, which the kernel would have answered by EFAULT.  What is frozen is waited
 * for.  A handler of a signal may call it, amid any other read.  It needs no guard_open(), so that it
 * costs some nanoseconds; where the thread blocks SIGSEGV, or the program has installed a handler
 * of its own since the last scan, the fault is the program's.
 */
bool guard_copy_for_call(void *to, const void *from, size_t bytes);
/* To be called once, before that. */
void guard_calls(void);

#endif
