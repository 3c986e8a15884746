/*
 * What the other threads do: does one wait for a device that writes into memory?  Where nobody can
 * tell, one does.
 */
#ifndef KSMPY_OS_DIRECT_IO_H
#define KSMPY_OS_DIRECT_IO_H

#include <stdbool.h>
#include <stdint.h>

int os_tasks_open(void); /* a descriptor for os_direct_io(), or -errno */
/*
 * Does a thread wait for a device that writes into these pages? Ask when they cannot be written
 * any more.  -EBUSY: it does, or nobody can tell; -EMFILE, -ENFILE: for want of a descriptor.
 */
int os_direct_io(int tasks_fd, uintptr_t address, uint64_t n);

/* A thread in madvise() that gives memory back (MADV_DONTNEED, MADV_FREE). */
struct os_removal {
    uintptr_t start, end;
    long thread; /* 0: nobody knows which */
};
/*
 * Those that wait there, for the kernel or for us: up to max of them; returns how many.  Others
 * that are running may be there as well.
 */
int os_removals(int tasks_fd, struct os_removal *removals, int max, bool *running);
/* May that thread still be in it? One that runs does not say where. */
bool os_may_remove(int tasks_fd, const struct os_removal *removal);
/* Has the process memory that is locked? true also where nobody can tell. */
bool os_has_locked_memory(int tasks_fd);

#endif
