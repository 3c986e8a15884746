/* Regions whose memory was taken away behind our back. */
#include "pages/lost.h"

#include "base/pages.h"
#include "os/clock.h"
#include "os/proc_maps.h"
#include "pages/candidates.h"
#include "pages/overlay.h"
#include "pages/pages.h"
#include "pages/regions.h"

/* Is the region from *at on still memory that we know, anonymous or an overlay, as far as it is? */
static bool intact(struct pages *pages, uintptr_t *at, uintptr_t end, uint64_t deadline)
{
    for (bool more = true; more && *at < end; more = os_now_ns() < deadline) {
        struct os_vma vma;
        int found = os_maps_find(&pages->maps, *at, &vma);
        if (found < 0) { /* the mappings cannot be read now; the next pass asks again */
            *at = end;
            return true;
        }
        if (!found || vma.start > *at)
            return false;
        if (!is_overlay(pages, &vma) && !(vma.private_rw && !vma.inode))
            return false;
        *at = vma.end;
    }
    return true;
}

void lose_region(struct pages *pages, uint32_t id)
{
    struct region *region = region_at(pages, id);
    if (region->lost)
        return;
    region->lost = true;
    for (uint64_t i = 0; i < region->n; i++) /* nobody must find, and read, such a page again */
        page_withdraw(pages, region->base + (uint32_t)i);
    pages->lost += region->n;
}

/* Looks whether a region is lost, from *at on, as far as a slice goes; moves *at on. */
static void look_for_loss(struct pages *pages, uint32_t id, uintptr_t *at, uint64_t deadline)
{
    const struct region *region = region_at(pages, id);
    uintptr_t end = region->address + bytes_of(region->n);
    *at = *at > region->address ? *at : region->address;
    if (!region->lost && !intact(pages, at, end, deadline))
        lose_region(pages, id);
    *at = region->lost ? end : *at;
}

bool find_lost_some(struct pages *pages, uintptr_t *at)
{
    uint64_t deadline = slice_end(pages);
    uint32_t id = region_from(pages, *at);
    os_maps_refresh(&pages->maps);
    for (; id != NO_REGION && os_now_ns() < deadline; id = region_from(pages, *at))
        look_for_loss(pages, id, at, deadline);
    return id != NO_REGION;
}

void check_lost_region(struct pages *pages, uint32_t region)
{
    uintptr_t at = 0;
    os_maps_refresh(&pages->maps);
    look_for_loss(pages, region, &at, UINT64_MAX);
}
