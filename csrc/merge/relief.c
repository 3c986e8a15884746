/*
 * Making room in the mapping budget: what has to be done whatever it costs comes before merging
 * that only saves.
 */
#include "merge/relief.h"

#include <errno.h>

#include "base/pages.h"
#include "merge/budget.h"
#include "merge/memory.h"
#include "merge/merger.h"
#include "merge/run.h"
#include "merge/unmerge.h"
#include "os/proc_maps.h"
#include "pages/overlay.h"
#include "pages/pages.h"
#include "pages/records.h"

typedef void visit(struct merger *merger, uint32_t region, uint64_t first, uint64_t n, void *data);

struct shortest {
    uint64_t pages[RUN_MAX + 1]; /* that lie in overlays of so many pages; the last: or more */
    uint64_t longest; /* of the overlays that have to go */
    uint64_t wanted;  /* pages that have to go */
};

static void each_overlay(struct merger *merger, visit *visit, void *data)
{
    os_maps_refresh(&merger->pages->maps);
    EACH_REGION (merger->pages, id) {
        const struct region *region = region_at(merger->pages, id);
        uintptr_t at = region->address, end = at + bytes_of(region->n);
        struct os_vma vma;
        while (!region->lost && region->pages_in[PAGE_SHARED] && at < end &&
               os_maps_find(&merger->pages->maps, at, &vma) > 0 && vma.start < end) {
            uintptr_t start = vma.start > at ? vma.start : at;
            at = vma.end < end ? vma.end : end;
            if (is_overlay(merger->pages, &vma))
                visit(merger, id, (start - region->address) >> PAGE_SHIFT,
                      (at - start) >> PAGE_SHIFT, data);
        }
    }
}

static void count_pages(struct merger *merger, uint32_t region, uint64_t first, uint64_t n,
                        void *data)
{
    struct shortest *shortest = data;
    (void)merger, (void)region, (void)first;
    shortest->pages[least(n, RUN_MAX)] += n;
}

static void take_apart(struct merger *merger, uint32_t region, uint64_t first, uint64_t n,
                       void *data)
{
    struct shortest *shortest = data;
    if (n > shortest->longest || !shortest->wanted || !memory_allows(merger, n))
        return;
    shortest->wanted -= least(n, shortest->wanted);
    unmerge_pages(merger, region, first, n, PAGE_SEEN);
}

/*
 * A page in a run that was written must come out of it, which takes two mappings.  When there are
 * none, overlays are taken apart, the shortest first: some at a time, as it takes three looks at
 * all mappings, but never many pages.  Not where they leave as many mappings behind (no shadow).
 * They may come back when nothing else needs the room for some passes.
 */
bool relief_make_room(struct merger *merger, uint64_t more)
{
    struct shortest shortest = {.wanted = merger->budget.limit / 64 + 1};
    if (budget_has_room_recounted(&merger->budget, more))
        return true;
    if (!merger->fz.ops->shadow || merger->budget.cramped_in == merger->pages->full_scans + 1)
        return false;
    each_overlay(merger, count_pages, &shortest);
    for (uint64_t found = 0; found < shortest.wanted && shortest.longest < RUN_MAX;)
        found += shortest.pages[++shortest.longest];
    each_overlay(merger, take_apart, &shortest);
    merger->budget.calm_since = merger->pages->full_scans;
    budget_count(&merger->budget);
    if (budget_has_room(&merger->budget, more))
        return true;
    merger->budget.cramped_in = merger->pages->full_scans + 1;
    return false;
}

bool relief_unmerge_run(struct merger *merger, uint32_t page, uint64_t n)
{
    int error = unmerge_run(merger, page, n);
    if (error == -EDQUOT && relief_make_room(merger, UNMERGE_MAPPINGS))
        error = unmerge_run(merger, page, n);
    if (error == -EDQUOT)
        mark_untracked(merger->pages, page, n);
    return error != -EDQUOT;
}
