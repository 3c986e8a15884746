/*
 * Pages as numbers: their size, and the arithmetic between pages, bytes and addresses.
 */
#ifndef KSMPY_BASE_PAGES_H
#define KSMPY_BASE_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_SHIFT 12
#define PAGE_SIZE ((size_t)1 << PAGE_SHIFT)

/* Pages of a file that the kernel maps at one fault: fault_around_bytes, 64 KiB unless changed. */
#define FAULT_AROUND 16

#define HUGE_PAGES                                                                                 \
    ((uint64_t)512) /* pages of a transparent huge page, which is aligned to its size */

/* Of a function whose caller may not go on as if it had done what it is for. */
#define KSMPY_MAY_REFUSE __attribute__((warn_unused_result))

static inline uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Do [start, end) and [other, other_end) have an address in common? */
static inline bool meet(uintptr_t start, uintptr_t end, uintptr_t other, uintptr_t other_end)
{
    return other < end && start < other_end;
}

static inline size_t bytes_of(uint64_t pages)
{
    return (size_t)pages << PAGE_SHIFT;
}

/* How many pages there are from an address to the next huge page's place: 1 to HUGE_PAGES. */
static inline uint64_t pages_to_huge(uintptr_t address)
{
    return HUGE_PAGES - (address >> PAGE_SHIFT) % HUGE_PAGES;
}

static inline uint8_t *page_at(uintptr_t address, uint64_t page)
{
    return (uint8_t *)address + bytes_of(page);
}

#endif
