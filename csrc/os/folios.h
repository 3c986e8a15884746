/*
 * Which folios the kernel keeps a file in memory in: the pages of a larger one share its references.
 */
#ifndef KSMPY_OS_FOLIOS_H
#define KSMPY_OS_FOLIOS_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Does a huge page lie at this place of the file, 1 or 0? One of its pages, which has memory, is
 * mapped to see.  Or an error where that does not tell: -ENOTTY before Linux 6.7, -EPERM in a process
 * that has forgone huge pages (PR_SET_THP_DISABLE), -EAGAIN.
 */
int os_file_is_huge(int fd, uint64_t offset, uint64_t page);
/*
 * May the file get larger folios than pages though nobody asks for them (MADV_COLLAPSE)? That is up
 * to its mount's option huge=, and to shmem_enabled for memfds: see the kernel's
 * Documentation/admin-guide/mm/transhuge.rst.
 */
bool os_file_gets_large_folios(int fd);

#endif
