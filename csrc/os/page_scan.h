/*
 * PAGEMAP_SCAN (Linux 6.7): ranges of pages of chosen kinds, by one system call.  -ENOTTY: the kernel
 * has none; -EFAULT: a part of the range is no user address.
 */
#ifndef KSMPY_OS_PAGE_SCAN_H
#define KSMPY_OS_PAGE_SCAN_H

#include <stdbool.h>
#include <stdint.h>

struct os_range {
    uintptr_t start, end;
    bool zero;    /* the kernel's zero page, or nothing at all */
    bool swapped; /* out, or only marked: os_pages() knows */
    bool huge;    /* a part of a huge page that is mapped as such */
};

/* struct pm_scan_arg of linux/fs.h */
struct os_scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define OS_SCAN_ARMS 1 /* a flag: what is found is protected, and its next write noted */
#define OS_IS_TRACKED (1u << 0)
#define OS_IS_WRITTEN (1u << 1)
#define OS_IS_FILE (1u << 2)
#define OS_IS_PRESENT (1u << 3)
#define OS_IS_SWAPPED (1u << 4)
#define OS_IS_ZERO (1u << 5)
#define OS_IS_HUGE (1u << 6)

/* Returns the number of ranges (at most max), and in *next the address up to which the answer goes. */
int64_t os_scan(int pagemap_fd, struct os_scan request, struct os_range *ranges, int64_t max,
                uintptr_t *next);
/* The same about one page, which has to be of these categories: 1 or 0 ranges, or -errno. */
int64_t os_scan_page(int pagemap_fd, uintptr_t page, uint64_t wanted, uint64_t told,
                     struct os_range *found);

#endif
