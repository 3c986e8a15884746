#include "os/pagemap.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/pages.h"
#include "os/map.h"
#include "os/page_scan.h"

/*
 * An overlay's untouched page is not there, a read one is a file page, a copied
 * one is neither.  Swapped out or migrating, each keeps what it is; but write
 * tracking leaves markers in the place of untouched pages, which look swapped.
 */
int64_t os_private(int pagemap_fd, uintptr_t address, uint64_t n, struct os_range *ranges,
                   int64_t max, uintptr_t *next)
{
    struct os_scan request = {
        .start = address,
        .end = address + bytes_of(n),
        .category_inverted = OS_IS_FILE,
        .category_mask = OS_IS_FILE,
        .category_anyof_mask = OS_IS_PRESENT | OS_IS_SWAPPED,
        .return_mask = OS_IS_PRESENT | OS_IS_SWAPPED,
    };
    return os_scan(pagemap_fd, request, ranges, max, next);
}

int os_first_private(int pagemap_fd, uintptr_t address, uint64_t n, uintptr_t *first)
{
    struct os_range found;
    struct os_scan request = {
        .start = address,
        .end = address + bytes_of(n),
        .max_pages = 1,
        .category_inverted = OS_IS_FILE | OS_IS_ZERO,
        .category_mask = OS_IS_FILE | OS_IS_ZERO,
        .category_anyof_mask = OS_IS_PRESENT | OS_IS_SWAPPED,
        .return_mask = OS_IS_PRESENT | OS_IS_SWAPPED,
    };
    int64_t count = os_scan(pagemap_fd, request, &found, 1, first);
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
#define RANGES 64

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

static int read_unprotected(int pagemap_fd, uintptr_t address, uint64_t n, bool *unprotected)
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

/* The ranges that a userfaultfd protects, markers among them.  Returns as os_scan() does. */
static int64_t scan_protected(int pagemap_fd, uintptr_t address, uint64_t n,
                              struct os_range *ranges, int64_t max, uintptr_t *next)
{
    struct os_scan request = {
        .start = address,
        .end = address + bytes_of(n),
        .category_inverted = OS_IS_WRITTEN,
        .category_mask = OS_IS_WRITTEN,
        .category_anyof_mask = OS_IS_PRESENT | OS_IS_SWAPPED,
        .return_mask = OS_IS_WRITTEN,
    };
    return os_scan(pagemap_fd, request, ranges, max, next);
}

/*
 * The kernel looks what is behind each page to make its word, which takes several times as long as
 * to look at its entry: so the words are read only where there is no other way to tell.
 */
int os_unprotected(int pagemap_fd, uintptr_t address, uint64_t n, bool *unprotected)
{
    struct os_range ranges[RANGES];
    uintptr_t at = address, end = address + bytes_of(n), next;
    memset(unprotected, true, n);
    for (; at < end; at = next) {
        int64_t count =
            scan_protected(pagemap_fd, at, (end - at) >> PAGE_SHIFT, ranges, RANGES, &next);
        if (count < 0 || next <= at)
            return read_unprotected(pagemap_fd, address, n, unprotected);
        for (int64_t i = 0; i < count; i++)
            memset(unprotected + ((ranges[i].start - address) >> PAGE_SHIFT), false,
                   (ranges[i].end - ranges[i].start) >> PAGE_SHIFT);
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
    struct os_scan request = {
        .start = address,
        .end = address + bytes_of(HUGE_PAGES),
        .category_inverted = OS_IS_ZERO | OS_IS_SWAPPED,
        .category_mask = OS_IS_HUGE | OS_IS_PRESENT | OS_IS_ZERO | OS_IS_SWAPPED,
        .return_mask = OS_IS_HUGE,
    };
    return os_scan(pagemap_fd, request, &range, 1, &next) == 1 && range.start == address &&
           range.end == request.end;
}

int os_is_in_huge(int pagemap_fd, uintptr_t page)
{
    struct os_range found;
    int64_t count = os_scan_page(pagemap_fd, page, OS_IS_PRESENT, OS_IS_HUGE, &found);
    return count < 0 ? (int)count : count == 0 ? -EAGAIN : found.huge;
}
