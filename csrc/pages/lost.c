/* Regions whose memory was taken away behind our back. */
#include "pages/lost.h"

#include "base/pages.h"
#include "os/maps.h"
#include "pages/candidates.h"
#include "pages/overlay.h"
#include "pages/pages.h"

/* Is all of the region still memory that we know: anonymous, or an overlay? */
static bool intact(struct pages *pages, const struct region *region)
{
    uintptr_t at = region->address, end = at + bytes_of(region->n);
    while (at < end) {
        struct os_vma vma;
        int found = os_maps_find(&pages->maps, at, &vma);
        if (found < 0)
            return true; /* nobody knows; the next pass asks again */
        if (!found || vma.start > at)
            return false;
        if (!is_overlay(pages, &vma) && !(vma.private_rw && !vma.inode))
            return false;
        at = vma.end;
    }
    return true;
}

void lose_region(struct pages *pages, uint32_t id)
{
    struct region *region = region_at(pages, id);
    if (region->lost)
        return;
    region->lost = true;
    for (uint64_t i = 0; i < region->n; i++) /* nobody may look at its bytes any more */
        page_withdraw(pages, region->base + (uint32_t)i);
    pages->lost += region->n;
}

static void look_for_loss(struct pages *pages, uint32_t id)
{
    const struct region *region = region_at(pages, id);
    if (!region->lost && !intact(pages, region))
        lose_region(pages, id);
}

void find_lost_regions(struct pages *pages)
{
    os_maps_refresh(&pages->maps);
    EACH_REGION (pages, id)
        look_for_loss(pages, id);
}

void check_lost_region(struct pages *pages, uint32_t region)
{
    os_maps_refresh(&pages->maps);
    look_for_loss(pages, region);
}
