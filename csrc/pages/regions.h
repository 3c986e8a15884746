/* Regions: their records, their page ids, and their order. */
#ifndef KSMPY_PAGES_REGIONS_H
#define KSMPY_PAGES_REGIONS_H

#include "pages/pages.h"

/* The lowest region with a page in the n pages at the address, or NO_REGION. */
uint32_t region_find(const struct pages *pages, uintptr_t address, uint64_t n);
/* The lowest region that has a page at the address or above, or NO_REGION. */
uint32_t region_from(const struct pages *pages, uintptr_t address);
/* How many of its pages lie before that address, at which it is gone on with. */
static inline uint64_t region_page_from(const struct region *region, uintptr_t address)
{
    return address > region->address ? (address - region->address) >> PAGE_SHIFT : 0;
}
/* Whether it is still the region that had this serial: asked after others had the lock. */
bool region_is(const struct pages *pages, uint32_t region, uint64_t serial);
bool region_is_known(const struct pages *pages, uint32_t region);
/* Whether all of it is private anonymous memory that may be written. */
bool memory_is_plain(struct pages *pages, uintptr_t address, uint64_t n);
/*
 * A region that arrives: a record, and page ids; NO_REGION: there is no memory for them.  Until it
 * is enlisted nobody else has heard of it, and a child forked meanwhile forgets it.  There is one
 * at a time.
 */
uint32_t region_arrive(struct pages *pages, uintptr_t address, uint64_t n, int vma_flags);
/* Makes the records of some of its pages, from *first on: NEW. false: there are no more. */
bool region_prepare_some(struct pages *pages, uint64_t *first);
void region_forget_arriving(struct pages *pages);
/* From now on it is one of the regions, of which none overlaps it. */
void region_enlist(struct pages *pages);
/* Takes a region out, all of whose pages are NEW. */
void region_remove(struct pages *pages, uint32_t id);

#endif
