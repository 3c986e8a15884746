/* Pages of zeros onto the kernel's zero page. */
#include "merge/zeros.h"

#include <errno.h>
#include <string.h>

#include "base/pages.h"
#include "freeze/freezer.h"
#include "merge/exchange.h"
#include "merge/merger.h"
#include "merge/refusal.h"
#include "os/arena.h"
#include "os/guard.h"
#include "pages/pages.h"
#include "pages/records.h"

static bool is_zero(const void *page)
{
    bool zero;
    return guard_is_zero(page, &zero) && zero;
}

static uint64_t zero_piece(struct merger *merger, uint32_t page, uint64_t n)
{
    struct piece piece = {.page = page};
    const uint8_t *view;
    int vma_flags = region_at(merger->pages, region_of(merger->pages, page))->vma_flags;
    int64_t got = freeze_for_zeros(&merger->fz, page_address(merger->pages, page), n, &view);
    if (got < 0) {
        uint64_t refused = got == FREEZE_LATER
                               ? freeze_reach(&merger->fz, page_address(merger->pages, page), n)
                               : 1;
        count_refusal(merger, got == FREEZE_LATER ? -EBUSY : (int)got, refused);
        return refused;
    }
    piece.n = (uint64_t)got;
    for (uint64_t i = 0; i < piece.n; i++)
        piece.equal[i] = !merger->fz.hole[i] && is_zero(view + bytes_of(i));
    for (uint64_t i = 0, length; i < piece.n; i += length) {
        length = piece_same_length(&piece, i);
        int error = piece.equal[i] ? freeze_zero(&merger->fz, i, length, vma_flags) : -ECANCELED;
        if (error)
            freeze_restore(&merger->fz, i, length);
        memset(piece.mapped + i, error == 0, length);
    }
    thaw(&merger->fz);
    for (uint64_t i = 0; i < piece.n; i++)
        if (piece.mapped[i]) {
            page_become(merger->pages, page + (uint32_t)i, PAGE_ZERO, NO_INDEX);
            merger->result->zeroed++;
        } else {
            count_refusal(merger, -ECANCELED, 1);
        }
    return piece.n;
}

uint64_t merge_zeros(struct merger *merger, uint32_t page, uint64_t n)
{
    uint64_t done = 0;
    do
        done += zero_piece(merger, page + (uint32_t)done, n - done);
    while (done < n && !merger_is_awaited(merger));
    return done;
}
