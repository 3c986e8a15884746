/*
 * The calls that change mappings, or ask about them, made past the C library's functions of that name.
 *
 * Memory profilers stand in for those, by preloading or by exchanging what objects call, and so may
 * allocators.  What such a function does it would do while pages are frozen: wait for a lock, whose
 * holder waits for a frozen page.  And it would take address space that is only reserved, and pages
 * that are mapped over, for memory that the program has taken: Fil ends the program for that, and
 * memray tells of 142 GB where 0.14 were in use.  libeatmydata has an msync() that does nothing.
 *
 * They answer as the functions do.  The thread sanitizer has to see them, to forget what it knows of
 * memory that is mapped anew.
 */
#ifndef KSMPY_OS_UNHOOKED_H
#define KSMPY_OS_UNHOOKED_H

#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define UNHOOKED static inline __attribute__((always_inline))

UNHOOKED void *os_mmap(void *address, size_t bytes, int rights, int flags, int fd, off_t offset)
{
#ifdef __SANITIZE_THREAD__
    return mmap(address, bytes, rights, flags, fd, offset);
#else
    return (void *)syscall(SYS_mmap, address, bytes, (long)rights, (long)flags, (long)fd, offset);
#endif
}

UNHOOKED int os_munmap(void *address, size_t bytes)
{
#ifdef __SANITIZE_THREAD__
    return munmap(address, bytes);
#else
    return (int)syscall(SYS_munmap, address, bytes);
#endif
}

/* to: NULL unless flags has MREMAP_FIXED. */
UNHOOKED void *os_mremap(void *from, size_t before, size_t after, int flags, void *to)
{
    return (void *)syscall(SYS_mremap, from, before, after, (long)flags, to);
}

UNHOOKED int os_mprotect(void *address, size_t bytes, int rights)
{
    return (int)syscall(SYS_mprotect, address, bytes, (long)rights);
}

UNHOOKED int os_madvise(void *address, size_t bytes, int advice)
{
    return (int)syscall(SYS_madvise, address, bytes, (long)advice);
}

UNHOOKED int os_msync(void *address, size_t bytes, int flags)
{
    return (int)syscall(SYS_msync, address, bytes, (long)flags);
}

#endif
