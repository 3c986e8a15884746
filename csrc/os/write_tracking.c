#include "os/write_tracking.h"

#include "base/pages.h"
#include "os/page_scan.h"

static int64_t arm(int pagemap_fd, uintptr_t address, uint64_t n, uint64_t any,
                   struct os_range *ranges, int64_t max, uintptr_t *next)
{
    struct os_scan request = {
        .flags = OS_SCAN_ARMS,
        .start = address,
        .end = address + bytes_of(n),
        .category_mask = OS_IS_WRITTEN,
        .category_anyof_mask = any,
        .return_mask = OS_IS_WRITTEN | OS_IS_ZERO | OS_IS_PRESENT | OS_IS_SWAPPED,
    };
    return os_scan(pagemap_fd, request, ranges, max, next);
}

int64_t os_arm_written(int pagemap_fd, uintptr_t address, uint64_t n, struct os_range *ranges,
                       int64_t max, uintptr_t *next)
{
    return arm(pagemap_fd, address, n, 0, ranges, max, next);
}

int64_t os_arm_written_there(int pagemap_fd, uintptr_t address, uint64_t n, struct os_range *ranges,
                             int64_t max, uintptr_t *next)
{
    return arm(pagemap_fd, address, n, OS_IS_PRESENT | OS_IS_SWAPPED, ranges, max, next);
}

int64_t os_written(int pagemap_fd, uintptr_t address, uint64_t n, struct os_range *ranges,
                   int64_t max, uintptr_t *next)
{
    struct os_scan request = {
        .start = address,
        .end = address + bytes_of(n),
        .category_mask = OS_IS_TRACKED | OS_IS_WRITTEN,
        .return_mask = OS_IS_ZERO | OS_IS_PRESENT | OS_IS_SWAPPED,
    };
    return os_scan(pagemap_fd, request, ranges, max, next);
}

int64_t os_untracked(int pagemap_fd, uintptr_t address, uint64_t n, struct os_range *ranges,
                     int64_t max, uintptr_t *next)
{
    struct os_scan request = {
        .start = address,
        .end = address + bytes_of(n),
        .category_inverted = OS_IS_TRACKED,
        .category_mask = OS_IS_TRACKED,
        .return_mask = OS_IS_ZERO | OS_IS_PRESENT | OS_IS_SWAPPED,
    };
    return os_scan(pagemap_fd, request, ranges, max, next);
}

bool os_is_tracked(int pagemap_fd, uintptr_t page)
{
    struct os_range found;
    return os_scan_page(pagemap_fd, page, OS_IS_TRACKED, OS_IS_TRACKED, &found) == 1;
}
