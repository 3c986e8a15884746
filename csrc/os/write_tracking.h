/*
 * Which pages were written, by the kernel's asynchronous write protection (UFFD_FEATURE_WP_ASYNC), and
 * arming them again.  Errors are those of os/page_scan.h.
 */
#ifndef KSMPY_OS_WRITE_TRACKING_H
#define KSMPY_OS_WRITE_TRACKING_H

#include "os/page_scan.h"

/*
 * The ranges of [address, +n) that are tracked memory written since they were last armed, and arms
 * them: they are protected, and the kernel notes the next write.  Overlays are passed over.  Returns
 * as os_scan() does.
 */
int64_t os_arm_written(int pagemap_fd, uintptr_t address, uint64_t n, struct os_range *ranges,
                       int64_t max, uintptr_t *next);
/*
 * The same of overlays: what is not there is left alone.  To arm it would take a page table, in whose
 * place a huge page could not be mapped any more.
 */
int64_t os_arm_written_there(int pagemap_fd, uintptr_t address, uint64_t n, struct os_range *ranges,
                             int64_t max, uintptr_t *next);
/*
 * The same as os_arm_written(), but arms nothing, so the next answer has these ranges again: the
 * question costs no writer a fault.
 */
int64_t os_written(int pagemap_fd, uintptr_t address, uint64_t n, struct os_range *ranges,
                   int64_t max, uintptr_t *next);
/* The ranges that are in mappings of which the kernel notes no writes. */
int64_t os_untracked(int pagemap_fd, uintptr_t address, uint64_t n, struct os_range *ranges,
                     int64_t max, uintptr_t *next);
/* Does the kernel note writes to the mapping that this page is in? */
bool os_is_tracked(int pagemap_fd, uintptr_t page);

#endif
