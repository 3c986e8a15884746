/*
 * Freezing: for some microseconds a page range cannot be reached by any other
 * thread, nor written by the kernel on a thread's behalf, while its bytes are
 * compared and its mapping is exchanged.
 *
 *   freeze(address, n)     takes the freezer's lock; the bytes are at *view
 *     freeze_overlay(...)    a part of the range is mapped onto frames
 *     freeze_zero(...)       a part becomes the kernel's zero page
 *     freeze_restore(...)    a part goes back as it was
 *   thaw()                 whoever touched the range meanwhile goes on; lock released
 *
 * Every frozen page must be given to exactly one of the three before thaw().
 *
 * What the address space looks like, uffd-move, pages b and c equal a frame:
 *
 *   region  | a | b | c | d |        scratch window  |   |   |
 *   freeze  | a |   |   | d |                        | b | c |    a touch of b or c waits
 *   compare                                          memcmp with the frames
 *   overlay | a | frame frame | d |                  | b | c |    two mappings more
 *   thaw    | a | frame frame | d |                  |   |   |    waiters retry, and read the frame
 *
 * uffd-remap does the same with mremap(MREMAP_DONTUNMAP); signal leaves the
 * pages where they are, readable, and lets writers wait in a SIGSEGV handler.
 *
 * Between freeze() and thaw() the caller must not fault on registered memory,
 * allocate, or take a lock that a thread may hold while it touches a region.
 *
 * Limits.  With a userfaultfd for user mode only, a system call that touches a
 * frozen page fails with EFAULT; so it does with "signal", if it writes.  So
 * nothing is frozen there beside such calls, as far as that can be known
 * (freeze/bystanders.h).
 * Devices that write into memory: uffd-move leaves a page that is pinned for
 * one alone, whatever pins it; the other ways, and unmerging in all of them,
 * notice direct I/O that a thread waits for (EBUSY), but not asynchronous I/O
 * and memory pinned for long (see os/direct_io.c).
 */
#ifndef KSMPY_FREEZE_FREEZER_H
#define KSMPY_FREEZE_FREEZER_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>

#include "freeze/ops.h"

/* mode and tracking as chosen by the engine; -errno, and nothing is left behind. */
int freezer_init(struct freezer *fz, int mode, bool tracked);
void freezer_destroy(struct freezer *fz);
/* In a forked child: lets go of what belongs to the parent, without touching its memory. */
void freezer_abandon(struct freezer *fz);

/*
 * How many leading pages freeze() would try to freeze: no further than the next huge page, which
 * is then frozen as one.
 */
uint64_t freeze_reach(const struct freezer *fz, uintptr_t address, uint64_t n);
/*
 * freeze(): nothing can be frozen just now, because another thread may be in a system call.  The
 * pages that would be frozen next will mostly fare like this one.
 */
#define FREEZE_LATER (-EADDRINUSE)
/* How many leading pages are frozen (1 to n), with the lock held; or -errno without it. */
int64_t freeze(struct freezer *fz, uintptr_t address, uint64_t n, const uint8_t **view);
/* The same where nothing will become an overlay. */
int64_t freeze_for_zeros(struct freezer *fz, uintptr_t address, uint64_t n, const uint8_t **view);

void freeze_restore(struct freezer *fz, uint64_t first, uint64_t n);
int freeze_overlay(struct freezer *fz, uint64_t first, uint64_t n, int memfd, uint64_t offset);
int freeze_zero(struct freezer *fz, uint64_t first, uint64_t n, int vma_flags);
void thaw(struct freezer *fz);

/*
 * Address space for n pages and one more that has the identity of the memory at address, where
 * nothing may be an overlay yet; or 0, if there is none to be had.  Memory that comes from the
 * same place in it makes one mapping with its neighbours again.
 */
uintptr_t freezer_shadow(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags);

/*
 * Turns up to FREEZE_MAX overlay pages, or those of one huge page, back into private anonymous memory with
 * the bytes they show now, while other threads use them.  Every mapping in the
 * range must be an overlay.  blank: their place in the shadow of their region,
 * or 0.  On error they are as before.  -ENOENT: a huge page does not come
 * back as one.  insists: also beside system calls on them, which may fail then.  -EBUSY: not now;
 * whoever insists gets that where the kernel would end the process (os/thread_data.h).
 */
int freezer_unoverlay(struct freezer *fz, uintptr_t address, uint64_t n, uintptr_t blank,
                      int vma_flags, bool insists);
/* Is that, in the place of a huge page, worth a try? */
bool freezer_comes_back_huge(const struct freezer *fz, uintptr_t address, uintptr_t blank,
                             int vma_flags);

#endif
