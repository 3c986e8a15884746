/* What the page tables say: PAGEMAP_SCAN (Linux 6.7), and the older /proc/self/pagemap words. */
#include "os/pagemap.h"

#include <errno.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/pages.h"
#include "os/map.h"

/* struct pm_scan_arg and struct page_region of linux/fs.h */
struct scan_request {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
struct scan_range {
    uint64_t start, end, categories;
};
#define SCAN_IOCTL _IOWR('f', 16, struct scan_request)
#define SCAN_WP_MATCHING 1
#define IS_TRACKED (1u << 0)
#define IS_WRITTEN (1u << 1)
#define IS_FILE (1u << 2)
#define IS_PRESENT (1u << 3)
#define IS_SWAPPED (1u << 4)
#define IS_ZERO (1u << 5)
#define IS_HUGE (1u << 6)

#define RANGES 256

static int64_t ask(int pagemap_fd, struct scan_request request, struct os_range *ranges,
                   int64_t max, uintptr_t *next)
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
        ranges[i] = (struct os_range){.start = found[i].start,
                                      .end = found[i].end,
                                      .zero = is & IS_ZERO || !(is & (IS_PRESENT | IS_SWAPPED)),
                                      .swapped = is & IS_SWAPPED,
                                      .huge = is & IS_HUGE};
    }
    *next = (uintptr_t)request.walk_end;
    return count;
}

static int64_t ask_written(int pagemap_fd, uintptr_t address, uint64_t n, uint64_t any,
                           struct os_range *ranges, int64_t max, uintptr_t *next)
{
    struct scan_request request = {
        .flags = SCAN_WP_MATCHING,
        .start = address,
        .end = address + bytes_of(n),
        .category_mask = IS_WRITTEN,
        .category_anyof_mask = any,
        .return_mask = IS_WRITTEN | IS_ZERO | IS_PRESENT | IS_SWAPPED,
    };
    return ask(pagemap_fd, request, ranges, max, next);
}

int64_t os_arm_written(int pagemap_fd, uintptr_t address, uint64_t n, struct os_range *ranges,
                       int64_t max, uintptr_t *next)
{
    return ask_written(pagemap_fd, address, n, 0, ranges, max, next);
}

int64_t os_arm_written_there(int pagemap_fd, uintptr_t address, uint64_t n, struct os_range *ranges,
                             int64_t max, uintptr_t *next)
{
    return ask_written(pagemap_fd, address, n, IS_PRESENT | IS_SWAPPED, ranges, max, next);
}

int64_t os_written(int pagemap_fd, uintptr_t address, uint64_t n, struct os_range *ranges,
                   int64_t max, uintptr_t *next)
{
    struct scan_request request = {
        .start = address,
        .end = address + bytes_of(n),
        .category_mask = IS_TRACKED | IS_WRITTEN,
        .return_mask = IS_ZERO | IS_PRESENT | IS_SWAPPED,
    };
    return ask(pagemap_fd, request, ranges, max, next);
}

/*
 * An overlay's untouched page is not there, a read one is a file page, a copied
 * one is neither.  Swapped out or migrating, each keeps what it is; but write
 * tracking leaves markers in the place of untouched pages, which look swapped.
 */
int64_t os_private(int pagemap_fd, uintptr_t address, uint64_t n, struct os_range *ranges,
                   int64_t max, uintptr_t *next)
{
    struct scan_request request = {
        .start = address,
        .end = address + bytes_of(n),
        .category_inverted = IS_FILE,
        .category_mask = IS_FILE,
        .category_anyof_mask = IS_PRESENT | IS_SWAPPED,
        .return_mask = IS_PRESENT | IS_SWAPPED,
    };
    return ask(pagemap_fd, request, ranges, max, next);
}

int os_first_private(int pagemap_fd, uintptr_t address, uint64_t n, uintptr_t *first)
{
    struct os_range found;
    struct scan_request request = {
        .start = address,
        .end = address + bytes_of(n),
        .max_pages = 1,
        .category_inverted = IS_FILE | IS_ZERO,
        .category_mask = IS_FILE | IS_ZERO,
        .category_anyof_mask = IS_PRESENT | IS_SWAPPED,
        .return_mask = IS_PRESENT | IS_SWAPPED,
    };
    int64_t count = ask(pagemap_fd, request, &found, 1, first);
    if (count > 0)
        *first = found.start;
    return count < 0 ? (int)count : 0;
}

#define WORD_PRESENT ((uint64_t)1 << 63)
#define WORD_SWAPPED ((uint64_t)1 << 62)
#define WORD_FILE ((uint64_t)1 << 61)
#define WORD_PROTECTED ((uint64_t)1 << 57) /* against writes, by a userfaultfd */
#define WORD_EXCLUSIVE ((uint64_t)1 << 56)
#define WORD_FRAME (((uint64_t)1 << 55) - 1) /* where it is; hidden without CAP_SYS_ADMIN: 0 */
#define WORD_SWAP_TYPE 31 /* mask; the type of that number is a marker, with no page behind it */
#define WORDS 512

/*
 * The zero page has no reverse mapping, so it is present and never exclusive;
 * neither is a page that a forked child shares.  Taking such a page for the
 * zero page (its bytes are zero too, the caller checked) loses only a merge.
 */
static uint8_t kind_of(uint64_t word)
{
    if (!(word & (WORD_PRESENT | WORD_SWAPPED)))
        return OS_PAGE_NONE;
    if (word & WORD_FILE)
        return OS_PAGE_FILE;
    if (!(word & WORD_PRESENT) && (word & WORD_SWAP_TYPE) == WORD_SWAP_TYPE)
        return OS_PAGE_NONE;
    if (!(word & (WORD_PRESENT | WORD_FRAME)) && word & WORD_PROTECTED)
        return OS_PAGE_UNTOLD; /* a marker protects; no swap area begins at 0 */
    if ((word & WORD_PRESENT) && !(word & WORD_EXCLUSIVE))
        return OS_PAGE_COMMON;
    return OS_PAGE_ANON;
}

static int read_words(int pagemap_fd, uintptr_t address, uint64_t *words, uint64_t n)
{
    off_t at = (off_t)(address >> PAGE_SHIFT) * 8;
    ssize_t got = pread(pagemap_fd, words, n * 8, at);
    return got == (ssize_t)(n * 8) ? 0 : got < 0 ? -errno : -EFAULT;
}

int os_unprotected(int pagemap_fd, uintptr_t address, uint64_t n, bool *unprotected)
{
    uint64_t words[WORDS];
    for (uint64_t done = 0, part; done < n; done += part) {
        part = least(n - done, WORDS);
        int error = read_words(pagemap_fd, address + bytes_of(done), words, part);
        if (error)
            return error;
        for (uint64_t i = 0; i < part; i++)
            unprotected[done + i] = !(words[i] & WORD_PROTECTED);
    }
    return 0;
}

int os_pages(int pagemap_fd, uintptr_t address, uint64_t n, uint8_t *kinds)
{
    uint64_t words[WORDS];
    while (n) {
        uint64_t part = least(n, WORDS);
        int error = read_words(pagemap_fd, address, words, part);
        if (error)
            return error;
        for (uint64_t i = 0; i < part; i++)
            kinds[i] = kind_of(words[i]);
        address += bytes_of(part);
        kinds += part;
        n -= part;
    }
    return 0;
}

/* Whatever stays untold could not be read: nothing is known of it. */
static int tell_again(int pagemap_fd, uintptr_t address, uint64_t n, uint8_t *kinds)
{
    os_populate(address, n, false);
    int error = os_pages(pagemap_fd, address, n, kinds);
    for (uint64_t i = 0; i < n; i++)
        if (kinds[i] == OS_PAGE_UNTOLD)
            kinds[i] = OS_PAGE_NONE;
    return error;
}

int os_tell_pages(int pagemap_fd, uintptr_t address, uint64_t n, uint8_t *kinds)
{
    int error = 0;
    for (uint64_t i = 0, length; i < n && !error; i += length) {
        for (length = 1; i + length < n && kinds[i + length] == kinds[i];)
            length++;
        if (kinds[i] == OS_PAGE_UNTOLD)
            error = tell_again(pagemap_fd, address + bytes_of(i), length, kinds + i);
    }
    return error;
}

bool os_is_huge(int pagemap_fd, uintptr_t address)
{
    struct os_range range;
    uintptr_t next;
    struct scan_request request = {
        .start = address,
        .end = address + bytes_of(HUGE_PAGES),
        .category_inverted = IS_ZERO | IS_SWAPPED,
        .category_mask = IS_HUGE | IS_PRESENT | IS_ZERO | IS_SWAPPED,
        .return_mask = IS_HUGE,
    };
    return ask(pagemap_fd, request, &range, 1, &next) == 1 && range.start == address &&
           range.end == request.end;
}

int os_is_in_huge(int pagemap_fd, uintptr_t page)
{
    struct os_range found;
    uintptr_t next;
    struct scan_request request = {
        .start = page,
        .end = page + PAGE_SIZE,
        .category_mask = IS_PRESENT,
        .return_mask = IS_HUGE,
    };
    int64_t count = ask(pagemap_fd, request, &found, 1, &next);
    return count < 0 ? (int)count : count == 0 ? -EAGAIN : found.huge;
}
