/*
 * A folio that anybody has a reference to can neither be split nor be put together with others: the
 * kernel compares its references with its mappings.  That is the proof.
 *
 *   on a huge page    a hole is punched of one byte that is zero, so that nothing is changed by it,
 *                     but the folio is split.  It was if there is no huge page after that.
 *   torn              its pieces are put on a huge page (MADV_COLLAPSE), which says whether it could.
 *
 * Nobody can get a new reference to a page that nobody maps, so what is proven stays true.
 */
#include "store/references.h"

#include <string.h>

#include "base/pages.h"
#include "os/files.h"
#include "os/folios.h"
#include "store/collapse.h"
#include "store/extents.h"
#include "store/files.h"
#include "store/store.h"

/* A byte that is zero in what nobody writes; false: there is none. */
static bool find_zero(const struct store *store, const uint32_t *frames, uint64_t n,
                      uint64_t *offset)
{
    uint8_t page[PAGE_SIZE];
    for (uint64_t i = 0; i < n; i++) {
        if (os_pread(store->write_fd, frame_offset(store, frames[i]), page, PAGE_SIZE) < 0)
            continue;
        const uint8_t *zero = memchr(page, 0, PAGE_SIZE);
        if (!zero)
            continue;
        *offset = frame_offset(store, frames[i]) + (uint64_t)(zero - page);
        return true;
    }
    return false;
}

static bool split(const struct store *store, const uint32_t *frames, uint64_t n)
{
    uint64_t offset;
    return find_zero(store, frames, n, &offset) && store_has_write_file(store) &&
           os_punch(store->write_fd, offset, 1) == 0;
}

/*
 * Each way begins with one answer and ends with the other one: where the page tables cannot tell,
 * nothing is proven.
 */
bool frames_are_unreferenced(const struct store *store, const uint32_t *frames, uint64_t n)
{
    uint64_t offset = frame_offset(store, extent_of(frames[0]));
    uint64_t page = frames[0] % EXTENT;
    int is = os_file_is_huge(store->memfd, offset, page);
    if (is < 0)
        return false;
    if (is)
        return split(store, frames, n) && os_file_is_huge(store->memfd, offset, page) == 0;
    return extent_collapse(store, extent_of(frames[0])) == 0 &&
           os_file_is_huge(store->memfd, offset, page) == 1;
}
