#include "freeze/borrow.h"

#include <stdbool.h>
#include <string.h>

#include "base/pages.h"
#include "freeze/home.h"
#include "freeze/known_mappings.h"
#include "freeze/registration.h"
#include "freeze/shadow.h"
#include "os/map.h"
#include "os/own_memory.h"
#include "os/proc_maps.h"

/*
 * How many mappings below a region are looked at, at most, for the start of the mapping that it
 * was once a part of: about a millisecond of PROCMAP_QUERY.
 */
#define PIECES 1024

/*
 * If the engine has the page mapped and can do without it, that ends, so that the page can be
 * mapped: it is one of the reserved places, or spare in a mapping of the engine's own.
 */
static bool free_own_page(struct freezer *fz, uintptr_t page)
{
    for (int i = 0; i < KEPT_PLACES; i++)
        if (fz->kept[i] == page) {
            os_unmap((void *)page, PAGE_SIZE);
            fz->kept[i] = 0;
            return true;
        }
    uintptr_t end = page + PAGE_SIZE;
    if (!os_take_spare(end))
        return false;
    os_unmap((void *)(end - OS_SPARE), OS_SPARE);
    return true;
}

/*
 * Reserves the place from which a page was lent: the next region of the same mapping needs it for
 * its own shadow, and the kernel would soon map something else there.
 */
static void keep_place(struct freezer *fz, uintptr_t page)
{
    uintptr_t *kept = &fz->kept[fz->kept_next++ % KEPT_PLACES];
    if (*kept)
        os_unmap((void *)*kept, PAGE_SIZE);
    *kept = os_claim(page, 1) == 0 ? page : 0;
    if (*kept)
        os_own(page, PAGE_SIZE);
}

/* Does one mapping cover both the page and the address start, which lies above it? */
static bool is_part(struct os_maps *maps, uintptr_t page, uintptr_t start)
{
    struct os_vma whole;
    os_maps_refresh(maps);
    return os_maps_find(maps, page, &whole) > 0 && whole.start <= page && whole.end > start;
}

/*
 * What has to be equal before the kernel merges the page with the mapping above: whether it is
 * registered, which the start of the mapping is if a region begins there; its flags, which may be
 * those of the region or none; and whether it counts as committed memory (see os_claim_as()).
 */
enum { ATTACHED = 1, FLAGGED = 2, UNCOUNTED = 4, WAYS = 8 };

/*
 * The page becomes readable and writable last.  If the kernel could merge it with a mapping below
 * it, it would do so rather than with the one above.
 */
static bool map_page(struct freezer *fz, uintptr_t page, int how, int vma_flags)
{
    bool counted = !(how & UNCOUNTED);
    if (os_claim_as(page, 1, counted) < 0 &&
        !(free_own_page(fz, page) && os_claim_as(page, 1, counted) == 0))
        return false;
    if (how & FLAGGED)
        os_set_vma_flags(page, 1, vma_flags);
    if (how & ATTACHED)
        freezer_attach(fz, page, 1);
    os_commit((void *)page, PAGE_SIZE);
    return true;
}

/*
 * Makes a mapping one page longer, below its start, if nothing is mapped there.  The kernel merges
 * the new page, which is empty, with the mapping, and so it has the same identity.  Nothing tells
 * which kind of page it will merge, so all are tried.
 */
static bool extend_down(struct freezer *fz, struct os_maps *maps, uintptr_t start, int vma_flags)
{
    uintptr_t page = start - PAGE_SIZE;
    int differ = (freezer_registration(fz) ? ATTACHED : 0) | (vma_flags ? FLAGGED : 0) | UNCOUNTED;
    for (int how = 0; how < WAYS; how++) {
        if (how & ~differ)
            continue;
        if (!map_page(fz, page, how, vma_flags))
            return false;
        if (is_part(maps, page, start))
            return true;
        os_unmap((void *)page, PAGE_SIZE);
    }
    return false;
}

/* ---- the start of a mapping ---- */

/*
 * Finds the start of the mapping that the region was a part of before regions and overlays cut it
 * into pieces.  Every private writable mapping that adjoins from below may have been part of it.  If
 * one was not, the borrowed page will not have the region's identity, which costs mappings and no
 * byte.
 *
 * Thousands of regions may lie in one mapping, and each of them comes here.  So the walk ends where
 * one before it has been, which *was_known tells.
 */
static struct known_mapping *find_mapping(struct freezer *fz, struct os_maps *maps,
                                          uintptr_t address, bool *was_known)
{
    uintptr_t begin = address;
    struct os_vma below;
    struct known_mapping *mapping = known_mapping_at(fz, begin);
    for (int i = 0; i < (maps->query ? PIECES : 1) && !mapping; i++) {
        bool found = os_maps_find(maps, begin - PAGE_SIZE, &below) > 0;
        if (!found || below.start >= begin || !below.private_rw || os_owns(begin - PAGE_SIZE))
            break;
        begin = below.start;
        mapping = known_mapping_at(fz, begin);
    }
    *was_known = mapping != NULL;
    mapping = mapping ? mapping : known_mapping_note(fz, begin);
    if (mapping->reach < address)
        mapping->reach = address;
    return mapping;
}

/*
 * If a page could be lent to a mapping that is known, and cannot any more, its owner may have
 * unmapped the part where it began: then the start is looked for anew.
 */
static uintptr_t borrow_page(struct freezer *fz, uintptr_t address, int vma_flags)
{
    struct os_maps maps;
    uintptr_t start = 0;
    bool again;
    if (os_maps_open(&maps) < 0)
        return 0;
    do {
        bool was_known;
        struct known_mapping *mapping = find_mapping(fz, &maps, address, &was_known);
        bool lent = extend_down(fz, &maps, mapping->begin, vma_flags);
        again = !lent && was_known && !mapping->refused;
        start = lent ? mapping->begin : 0;
        *mapping = (struct known_mapping){again ? 0 : mapping->begin, mapping->reach, !lent};
    } while (again);
    os_maps_close(&maps);
    return start ? start - PAGE_SIZE : 0;
}

/*
 * The shadow's identity (see freeze/shadow.h) comes from an empty page by which the region's
 * mapping is extended below its start.  So no page of the region has to be absent for a moment.
 *
 *              |page| ... | a | b | c | d |       the mapping, one page longer
 *   |page| ... |   |   |   |   |                  moved away, and grown
 *              |   |   |   |   |                  the shadow
 *
 * The place that the page has left is reserved for the next shadow of this mapping.
 */
uintptr_t shadow_by_borrowing(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags)
{
    uintptr_t page = borrow_page(fz, address, vma_flags);
    uintptr_t at = page ? (uintptr_t)os_reserve(PAGE_SIZE) : 0;
    uint64_t before = (address - page) >> PAGE_SHIFT;
    if (!at || os_remap(at, page, 1, false) < 0) {
        /*
         * The target, at, is not unmapped: a failed mremap may have unmapped it already, and
         * another thread may have mapped something there since.
         */
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
