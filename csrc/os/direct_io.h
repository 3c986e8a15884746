/*
 * Does a thread wait for a device that writes into memory?  Where nobody can tell, one does.
 */
#ifndef KSMPY_OS_DIRECT_IO_H
#define KSMPY_OS_DIRECT_IO_H

#include <stdint.h>

/*
 * Does a thread wait for a device that writes into these pages? Ask when they cannot be written
 * any more.  -EBUSY: it does, or nobody can tell; -EMFILE, -ENFILE: for want of a descriptor.
 */
int os_direct_io(int tasks_fd, uintptr_t address, uint64_t n);

#endif
