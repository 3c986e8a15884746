/*
 * Files in memory: the store's, and any descriptor of which the engine has to know whether it still
 * is what it was.
 *
 * A function answers 0 or a count, or a negative errno: -ENOSPC where the file system is full,
 * -EBADF where the program has closed the descriptor.
 */
#ifndef KSMPY_OS_FILES_H
#define KSMPY_OS_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/pages.h"

/*
 * What open() and the like have answered: -errno, or a descriptor above the standard files.  Where a
 * program runs with those closed, whatever it or a library prints goes to the file that has their
 * number, and would overwrite frames.
 */
int os_keep_off_standard(int fd);
int os_memfd(const char *name, size_t bytes);
/* Another description of the same file: its locks and its rights are its own. */
int os_reopen(int fd, int flags);
/* The same, which may be a standard file: for who is apart (os/apart.h). */
int os_reopen_anywhere(int fd, int flags);
/*
 * No change of size, and nobody can open it for writing again. A read-only descriptor of it, or
 * -errno.
 */
int os_seal(int memfd);
/*
 * Copies memory into a file; how many leading pages, or -errno when none. The memory may be live.
 */
int64_t os_write(int fd, uint64_t offset, const void *from, uint64_t n);
/* The same, each page from somewhere else. */
int64_t os_write_from(int fd, uint64_t offset, const struct iovec *from, uint64_t n);
/* Memory for a part of a file now, so that touching it cannot fail; -ENOSPC. */
int os_allocate(int fd, uint64_t offset, uint64_t bytes);
/* Gives the memory under a part of a file back to the system. */
int os_punch(int fd, uint64_t offset, uint64_t bytes);
/* All of it, or -ENODATA. */
int os_pread(int fd, uint64_t offset, void *to, size_t bytes);
/*
 * A file of /proc that is open for a moment only, to be read, by a path below dir; -1.  Closed is only
 * what was opened so: the program may have closed it, and opened a file that has its number.
 */
int os_open_briefly(int dir, const char *path);
bool os_is_brief(int fd);
void os_close_brief(int fd);
/* What a small file begins with, as a string, which is empty after an error. */
void os_read_text(const char *path, char *text, size_t size);
/* Some bytes that are there already are written over; no harm if that fails. */
void os_put(int fd, uint64_t offset, const void *from, size_t bytes);
int64_t os_file_size(int fd);
/* How many bytes of memory, or of a disk, it has. */
int64_t os_file_memory(int fd);
/* Of the file system that it lies on, in pages; false: it has no size of its own. */
bool os_file_room(int fd, uint64_t *size, uint64_t *left);
int os_set_size(int fd, uint64_t bytes);
int os_identify(int fd, uint64_t *inode, uint64_t *dev);
/* The same of a descriptor of ours, which os_is_file() then knows from all others. */
int os_know_file(int fd, uint64_t *inode, uint64_t *dev);
/* Is it still that file of ours, or has the program closed it, and perhaps opened another? */
bool os_is_file(int fd, uint64_t inode);
/* The same, if it is enough to know that it is a file that some engine of this process has opened. */
bool os_is_known(int fd);
/* Locks one byte for the open file description, as long as that is open; -EAGAIN: it is taken. */
KSMPY_MAY_REFUSE int os_try_lock(int fd, uint64_t number, bool exclusive);

#endif
