/*
 * What the page tables say, as /proc/self/pagemap has it.  Errors are those of os/page_scan.h, or of
 * pread().
 */
#ifndef KSMPY_OS_PAGEMAP_H
#define KSMPY_OS_PAGEMAP_H

#include <stdbool.h>
#include <stdint.h>

#include "os/page_scan.h"

/*
 * The ranges of [address, +n) that are private memory of any kind; nothing is armed.  Returns as
 * os_scan() does.
 */
int64_t os_private(int pagemap_fd, uintptr_t address, uint64_t n, struct os_range *ranges,
                   int64_t max, uintptr_t *next);
/*
 * The first address of [address, +n) where there is private memory that is not the kernel's zero page,
 * or a marker for some; or the end.
 */
int os_first_private(int pagemap_fd, uintptr_t address, uint64_t n, uintptr_t *first);
/* A page's kind, without PAGEMAP_SCAN. */
enum os_page {
    OS_PAGE_NONE,
    OS_PAGE_FILE,
    OS_PAGE_ANON,
    OS_PAGE_COMMON, /* the kernel's zero page, or one that fork has left to several processes */
    OS_PAGE_UNTOLD, /* swapped out, or none: an ordinary user is not told which */
};
int os_pages(int pagemap_fd, uintptr_t address, uint64_t n, uint8_t *kinds);
/* Which pages can be written without a fault that a userfaultfd hears of. */
int os_unprotected(int pagemap_fd, uintptr_t address, uint64_t n, bool *unprotected);
/* Those that were not told are faulted in for reading, and asked about again. */
int os_tell_pages(int pagemap_fd, uintptr_t address, uint64_t n, uint8_t *kinds);
/* Is there a huge page, mapped as one, at this address? false where only PAGEMAP_SCAN could tell. */
bool os_is_huge(int pagemap_fd, uintptr_t address);
/*
 * Is this page, which was just read, mapped as a part of a huge page, 1 or 0? -EAGAIN: it is not there
 * any more, for a moment.
 */
int os_is_in_huge(int pagemap_fd, uintptr_t page);

#endif
