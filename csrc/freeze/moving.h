/*
 * What libraries call instead of the C library's mremap() (see freeze/retries.h).
 *
 * An overlay is a mapping of the store's file.  One that the kernel makes longer would show the frames that
 * follow its own in the file, where its owner expects zeros.  One that is moved belongs to no userfaultfd any
 * more, so that nobody would be told when its owner gives it back (freeze/removal_thread.h).  And of memory
 * that is several mappings, as it is where a part is merged, the kernel makes nothing longer: EFAULT.  So
 * overlays stay where they are: a copy goes in their place, with the memory around them.
 */
#ifndef KSMPY_FREEZE_MOVING_H
#define KSMPY_FREEZE_MOVING_H

#include <stddef.h>
#include <stdint.h>

/* Says of which files overlays are private mappings, in this process and in its children. */
void moving_know_store(uint64_t inode, uint64_t dev);

/* The flags, their further argument and the errors are those of mremap(2). */
void *moving_mremap(void *from, size_t before, size_t after, int flags, ...);

#endif
