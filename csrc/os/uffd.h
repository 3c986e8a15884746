/*
 * userfaultfd: descriptors, the ranges that belong to one, filling, protecting and waking.
 *
 * A function answers 0 or a count, or a negative errno: what the kernel says, of which callers
 * have to expect -ENOENT (the range is not, or not as a whole, what was registered), -EAGAIN
 * (mappings were changing), -EEXIST, -EBUSY and -ENOMEM.  None waits.
 */
#ifndef KSMPY_OS_UFFD_H
#define KSMPY_OS_UFFD_H

#include <stdbool.h>
#include <stdint.h>

enum os_uffd_feature {
    OS_UFFD_MOVE = 1,
    OS_UFFD_WP_ASYNC = 2,   /* write protection that the kernel lifts by itself */
    OS_UFFD_WP_SYNC = 4,    /* write protection that blocks, also on shmem mappings */
    OS_UFFD_TELL_REMOVE = 8 /* madvise() that gives pages back waits until that is read */
};

enum os_uffd_mode { OS_UFFD_MISSING = 1, OS_UFFD_WP = 2 };

enum os_uffd_event { OS_UFFD_NOTHING, OS_UFFD_FAULT, OS_UFFD_REMOVE, OS_UFFD_OTHER };

int os_uffd_open(int features); /* a new userfaultfd, or -errno */
bool os_uffd_handles_calls(void); /* Would it also handle faults in system calls? */
int os_uffd_register(int fd, uintptr_t address, uint64_t n, int mode);
int os_uffd_unregister(int fd, uintptr_t address, uint64_t n);
/* Moves pages; returns how many of the leading ones were moved, or -errno when none was. */
int64_t os_uffd_move(int fd, uintptr_t to, uintptr_t from, uint64_t n);
int64_t os_uffd_copy(int fd, uintptr_t to, const void *from, uint64_t n);
int64_t os_uffd_zero(int fd, uintptr_t address, uint64_t n);
int os_uffd_wake(int fd, uintptr_t address, uint64_t n);
int os_uffd_protect(int fd, uintptr_t address, uint64_t n, bool on);
/* Is it one anonymous mapping that is registered, with whatever descriptor? Changes nothing. */
bool os_uffd_is_registered(int fd, uintptr_t address, uint64_t n);
/* Is the page, which may be an overlay's, in memory that is registered, with whatever descriptor? */
bool os_uffd_is_of_any(int fd, uintptr_t page);
/*
 * The next message, without waiting: faults come first.  For OS_UFFD_FAULT *start is the page, for
 * OS_UFFD_REMOVE [*start, *end) is what is given back, as far as one mapping goes.
 */
int os_uffd_read(int fd, uintptr_t *start, uintptr_t *end);

#endif
