#include "os/page_scan.h"

#include <errno.h>
#include <sys/ioctl.h>

#include "base/pages.h"

/* struct page_region of linux/fs.h */
struct scan_range {
    uint64_t start, end, categories;
};
#define SCAN_IOCTL _IOWR('f', 16, struct os_scan)
#define RANGES 256

int64_t os_scan(int pagemap_fd, struct os_scan request, struct os_range *ranges, int64_t max,
                uintptr_t *next)
{
    struct scan_range found[RANGES];
    request.size = sizeof request;
    request.vec = (uintptr_t)found;
    request.vec_len = least((uint64_t)max, RANGES);
    int count = ioctl(pagemap_fd, SCAN_IOCTL, &request);
    if (count < 0)
        return -errno;
    for (int i = 0; i < count; i++) {
        uint64_t is = found[i].categories;
        ranges[i] =
            (struct os_range){.start = found[i].start,
                              .end = found[i].end,
                              .zero = is & OS_IS_ZERO || !(is & (OS_IS_PRESENT | OS_IS_SWAPPED)),
                              .swapped = is & OS_IS_SWAPPED,
                              .huge = is & OS_IS_HUGE};
    }
    *next = (uintptr_t)request.walk_end;
    return count;
}

int64_t os_scan_page(int pagemap_fd, uintptr_t page, uint64_t wanted, uint64_t told,
                     struct os_range *found)
{
    uintptr_t next;
    struct os_scan request = {
        .start = page,
        .end = page + PAGE_SIZE,
        .category_mask = wanted,
        .return_mask = told,
    };
    return os_scan(pagemap_fd, request, found, 1, &next);
}
