#include "freeze/borrow.h"

#include <stdbool.h>
#include <string.h>

#include "base/pages.h"
#include "freeze/registration.h"
#include "freeze/shadow.h"
#include "os/map.h"
#include "os/maps.h"
#include "os/own.h"

#define PIECES 1024 /* that are looked at below a region: a millisecond */

static bool is_kept(struct freezer *fz, uintptr_t page)
{
    for (int i = 0; i < KEPT_PLACES; i++)
        if (fz->kept[i] == page) {
            os_unmap((void *)page, PAGE_SIZE);
            fz->kept[i] = 0;
            return true;
        }
    return false;
}

/* For the next region of that mapping, before anything else gets the place. */
static void keep_place(struct freezer *fz, uintptr_t page)
{
    uintptr_t *kept = &fz->kept[fz->kept_next++ % KEPT_PLACES];
    if (*kept)
        os_unmap((void *)*kept, PAGE_SIZE);
    *kept = os_claim(page, 1) == 0 ? page : 0;
    if (*kept)
        os_own(page, PAGE_SIZE);
}

static bool is_part(struct os_maps *maps, uintptr_t page, uintptr_t start)
{
    struct os_vma whole;
    os_maps_refresh(maps);
    return os_maps_find(maps, page, &whole) > 0 && whole.start <= page && whole.end > start;
}

/*
 * A page more of a mapping, below its start, where nothing is: an empty one with its identity.
 * Where the mapping belongs to a region, the page has to do so too.
 */
static bool extend_down(struct freezer *fz, struct os_maps *maps, uintptr_t start, int vma_flags)
{
    uintptr_t page = start - PAGE_SIZE;
    if (os_map_at(page, 1) < 0 && !(is_kept(fz, page) && os_map_at(page, 1) == 0))
        return false;
    if (is_part(maps, page, start))
        return true;
    os_set_vma_flags(page, 1, vma_flags);
    if (freezer_attach(fz, page, 1) == 0 && is_part(maps, page, start))
        return true;
    os_unmap((void *)page, PAGE_SIZE);
    return false;
}

/*
 * Where the mapping begins that the region was part of, before regions and overlays cut it into
 * pieces: what lies right below the region was one mapping with it, or will not become one.
 */
static uintptr_t begin_of_mapping(struct os_maps *maps, uintptr_t address)
{
    struct os_vma below;
    for (int i = 0; i < (maps->query ? PIECES : 1); i++) {
        bool found = os_maps_find(maps, address - PAGE_SIZE, &below) > 0;
        if (!found || below.start >= address || !below.private_rw || os_owns(address - PAGE_SIZE))
            return address;
        address = below.start;
    }
    return address;
}

static uintptr_t borrow_page(struct freezer *fz, uintptr_t address, int vma_flags)
{
    struct os_maps maps;
    if (os_maps_open(&maps) < 0)
        return 0;
    uintptr_t start = begin_of_mapping(&maps, address);
    bool lent = extend_down(fz, &maps, start, vma_flags);
    os_maps_close(&maps);
    return lent ? start - PAGE_SIZE : 0;
}

/*
 * The shadow's identity (see freeze/shadow.h) comes from an empty page, which the region's mapping
 * gets for it below its start: so no page of the region has to go away for a moment.
 *
 *              |page| ... | a | b | c | d |       the mapping, one page longer
 *   |page| ... |   |   |   |   |                  moved away, and grown
 *              |   |   |   |   |                  the shadow
 *
 * The place of the page is kept.
 */
uintptr_t shadow_by_borrowing(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags)
{
    uintptr_t page = borrow_page(fz, address, vma_flags);
    uintptr_t at = page ? (uintptr_t)os_reserve(PAGE_SIZE) : 0;
    uint64_t before = (address - page) >> PAGE_SHIFT;
    if (!at || os_remap(at, page, 1, false) < 0) {
        /* A failed mremap may have unmapped its target, which may be another's by now. */
        os_unmap((void *)page, PAGE_SIZE);
        return 0;
    }
    uintptr_t grown = shadow_grow(at, page, before + n);
    os_unmap((void *)(grown ? grown : at), bytes_of(grown ? before : 1));
    if (!grown)
        return 0;
    keep_place(fz, page);
    os_set_vma_flags(grown + bytes_of(before), n + 1, vma_flags);
    return grown + bytes_of(before);
}

void borrow_close(struct freezer *fz)
{
    for (int i = 0; i < KEPT_PLACES; i++)
        os_unmap((void *)fz->kept[i], PAGE_SIZE);
    memset(fz->kept, 0, sizeof fz->kept);
}
