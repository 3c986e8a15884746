/*
 * What libraries call instead of the C library's mremap() (see freeze/retries.h).
 *
 * An overlay is a mapping of the store's file.  One that the kernel makes longer would show the frames that
 * follow its own in the file, where its owner expects zeros.  One that is moved belongs to no userfaultfd any
 * more, so that nobody would be told when its owner gives it back (freeze/removal_thread.h).  And of memory
 * that is several mappings, as it is where a part is merged, the kernel makes nothing longer: EFAULT.  So
 * overlays stay where they are: a copy goes in their place, with the memory around them.
 *
 *   mremap()  notes the range, waits for what is frozen by then, looks for overlays, and moves it
 *   freezing  begins (freezes_begin()), and then looks whether a range was noted
 *
 * So of a move and a freeze that come at the same time, one sees the other, and what was found to be no
 * overlay is none while the kernel moves it.
 */
#ifndef KSMPY_FREEZE_MOVING_H
#define KSMPY_FREEZE_MOVING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Says of which files overlays are private mappings, in this process and in its children. */
void moving_know_store(uint64_t inode, uint64_t dev);

/* The flags, their further argument and the errors are those of mremap(2). */
void *moving_mremap(void *from, size_t before, size_t after, int flags, ...);
/* Is any of n pages about to be moved? */
bool moving_meets(uintptr_t address, uint64_t n);
/* In a forked child: threads that were about to move something are not there. */
void moving_forget_all(void);

#endif
