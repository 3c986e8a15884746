/* In a full store, frames that nobody else has joined are left; and what is spare in any. */
#include "merge/lonely.h"

#include <stdatomic.h>

#include "merge/memory.h"
#include "merge/merger.h"
#include "merge/relief.h"
#include "merge/unmerge.h"
#include "pages/pages.h"
#include "store/frames.h"
#include "store/store.h"

#define LONELY_PASSES 4 /* passes in which nobody else has joined a frame before it is left */
#define LEAVE_AT_ONCE 4096 /* pages that are unmerged before a pass to make room */

/*
 * Is the page alone on its frame, and has been for some passes?  Counts them in the page's age.
 * Other processes may join at any moment, as the store's lock is not held: the answer is a hint.
 */
static bool is_lonely(const struct pages *pages, uint32_t id)
{
    struct page *page = page_record(pages, id);
    if (page_state(page) != PAGE_SHARED)
        return false;
    if (frame_at(&pages->store, page->link)->sharers != 1)
        page_set_age(page, 0);
    else if (page_age(page) < LONELY_PASSES)
        page_set_age(page, page_age(page) + 1);
    return page_age(page) >= LONELY_PASSES;
}

/* Unmerges pages, which then wait for equal ones again, as they did before they were merged. */
static bool leave_frames(struct merger *merger, uint32_t id, uint64_t n)
{
    uint32_t region = region_of(merger->pages, id);
    if (!memory_allows(merger, n) || !relief_make_room(merger, UNMERGE_MAPPINGS))
        return false;
    for (uint64_t i = 0; i < n; i++)
        page_set_age(page_record(merger->pages, id + (uint32_t)i), 0);
    merger->budget.mappings += UNMERGE_MAPPINGS;
    unmerge_pages(merger, region, id - region_at(merger->pages, region)->base, n, PAGE_SEEN);
    return true;
}

/* How many pages were unmerged; max when there is no memory for more. */
static uint64_t leave_frames_of_region(struct merger *merger, uint32_t region, uint64_t max)
{
    const struct region *at = region_at(merger->pages, region);
    uint64_t done = 0, n = 0;
    for (uint64_t i = 0; i < at->n && done + n < max; i++) {
        bool lonely = is_lonely(merger->pages, at->base + (uint32_t)i);
        n += lonely;
        if (n && (!lonely || i + 1 == at->n || done + n == max)) {
            uint64_t end = lonely ? i + 1 : i;
            if (!leave_frames(merger, at->base + (uint32_t)(end - n), n))
                return max;
            done += n;
            n = 0;
        }
    }
    return done;
}

void leave_lonely_frames(struct merger *merger)
{
    uint64_t done = 0;
    memory_is_not_spared(merger);
    store_look_for_room(&merger->pages->store);
    if (!merger->pages->store.shared || !atomic_load(&merger->pages->store.head->full))
        return;
    EACH_REGION (merger->pages, id)
        if (done < LEAVE_AT_ONCE && region_at(merger->pages, id)->pages_in[PAGE_SHARED] &&
            !region_at(merger->pages, id)->lost)
            done += leave_frames_of_region(merger, id, LEAVE_AT_ONCE - done);
    store_flush(&merger->pages->store);
    store_look_for_room(&merger->pages->store);
}
