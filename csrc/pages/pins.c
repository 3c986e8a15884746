/*
 * Frames whose overlays went out of sight: their owner has unmapped them, or moved them somewhere.
 * Such a frame is pinned until looks at all mappings of the process, in CHECKS passes in a row,
 * have found no mapping of it but those of its sharers.  One look is not enough: it takes time, and
 * an overlay that is moved meanwhile can escape it.
 */
#include "pages/pins.h"

#include "base/pages.h"
#include "os/arena.h"
#include "os/proc_maps.h"
#include "pages/overlay.h"
#include "pages/pages.h"
#include "pages/regions.h"
#include "store/frames.h"
#include "store/lock.h"
#include "store/pool.h"
#include "store/sharers.h"
#include "store/store.h"

#define CHECKS 3 /* looks, one in each pass, that must not find the frame before it is unpinned */

struct pin {
    uint32_t frame;
    uint32_t unseen; /* looks in a row that found no mapping of it */
};

/*
 * If the list cannot grow the frame stays pinned until the process ends.  In a forked child no
 * frame is pinned in the store, which is the parent's: the child's lease keeps what it maps.
 */
void pins_add(struct pages *pages, uint32_t frame)
{
    uint64_t limit = frame_limit(&pages->store);
    if (!pages->forked)
        store_pin(&pages->store, frame);
    if (!pages->pins.list.base && arena_init(&pages->pins.list, sizeof(struct pin), limit) < 0)
        pages->pins.unlisted = true;
    else if (arena_grow(&pages->pins.list, pages->pins.count + 1) < 0)
        pages->pins.unlisted = true;
    else
        *(struct pin *)arena_at(&pages->pins.list, pages->pins.count++) = (struct pin){frame, 0};
}

void pins_inherit(struct pages *pages)
{
    for (uint64_t i = 0; i < pages->pins.count; i++) {
        struct pin *pin = arena_at(&pages->pins.list, i);
        pin->unseen = 0;
        if (frame_is_live(&pages->store, pin->frame))
            store_pin(&pages->store, pin->frame);
    }
}

void pins_forget(struct pages *pages)
{
    arena_destroy(&pages->pins.list);
    arena_destroy(&pages->pins.seen);
    pages->pins.count = 0;
}

static struct pin *pin_at(const struct pages *pages, uint64_t i)
{
    return arena_at(&pages->pins.list, i);
}

static uint64_t *word_of(const struct pages *pages, uint32_t frame)
{
    return arena_at(&pages->pins.seen, frame / 64);
}

static void mark(const struct pages *pages, uint32_t frame)
{
    *word_of(pages, frame) |= (uint64_t)1 << (frame % 64);
}

static bool is_marked(const struct pages *pages, uint32_t frame)
{
    return *word_of(pages, frame) >> (frame % 64) & 1;
}

/*
 * Clears the marks of what was seen, for every pinned frame; false: there is no memory for marks.
 */
static bool begin_check(struct pages *pages)
{
    uint64_t words = frame_limit(&pages->store) / 64 + 1, end = 0;
    if (!pages->pins.seen.base && arena_init(&pages->pins.seen, sizeof(uint64_t), words) < 0)
        return false;
    for (uint64_t i = 0; i < pages->pins.count; i++)
        end = pin_at(pages, i)->frame > end ? pin_at(pages, i)->frame : end;
    if (arena_grow(&pages->pins.seen, end / 64 + 1) < 0)
        return false;
    for (uint64_t i = 0; i < pages->pins.count; i++)
        *word_of(pages, pin_at(pages, i)->frame) = 0;
    return true;
}

/*
 * Is this mapping of the frame a page of a region that counts as its sharer?  No pin is for that.
 */
static bool is_in_sight(const struct pages *pages, uintptr_t address, uint64_t frame)
{
    uint32_t region = region_find(pages, address, 1);
    if (region == NO_REGION)
        return false;
    const struct region *at = region_at(pages, region);
    uint32_t id = at->base + (uint32_t)((address - at->address) >> PAGE_SHIFT);
    return is_shared(pages, id) && page_record(pages, id)->link == frame;
}

static void see(struct pages *pages, const struct os_vma *vma)
{
    const struct store *store = &pages->store;
    uint64_t end = pages->pins.seen.committed * 64;
    uint64_t first = (vma->offset - store->offset) >> PAGE_SHIFT;
    uint64_t n = (vma->end - vma->start) >> PAGE_SHIFT;
    for (uint64_t frame = first; frame < first + n && frame < end; frame++)
        if (frame_is_live(store, (uint32_t)frame) && frame_at(store, (uint32_t)frame)->pins &&
            !is_in_sight(pages, vma->start + bytes_of(frame - first), frame))
            mark(pages, (uint32_t)frame);
}

/*
 * Looks at every private mapping of the store, whatever its rights: those are the overlays, while
 * the engine's own views of the file are shared mappings.
 */
static bool see_all(struct pages *pages)
{
    struct os_vma vma;
    uintptr_t at = 0;
    int found;
    os_maps_refresh(&pages->maps);
    while ((found = os_maps_find(&pages->maps, at, &vma)) > 0) {
        if (shows_store(pages, &vma) && !vma.shared && vma.offset >= pages->store.offset)
            see(pages, &vma);
        at = vma.end;
    }
    return found == 0;
}

/* Counts the looks that did not find each frame.  Marked are then the frames with a pin that stays. */
static void count_looks(struct pages *pages)
{
    for (uint64_t i = 0; i < pages->pins.count; i++) {
        struct pin *pin = pin_at(pages, i);
        pin->unseen = is_marked(pages, pin->frame) ? 0 : pin->unseen + 1;
    }
    for (uint64_t i = 0; i < pages->pins.count; i++)
        if (pin_at(pages, i)->unseen < CHECKS)
            mark(pages, pin_at(pages, i)->frame);
}

/* In a shared store all pins of a frame are one, which goes with the last of them. */
void pins_check(struct pages *pages)
{
    uint64_t kept = 0;
    if (!pages->pins.count || !begin_check(pages) || !see_all(pages) || !store_lock(&pages->store))
        return;
    count_looks(pages);
    for (uint64_t i = 0; i < pages->pins.count; i++) {
        struct pin pin = *pin_at(pages, i);
        if (pin.unseen < CHECKS)
            *pin_at(pages, kept++) = pin;
        else if (!pages->store.shared || !is_marked(pages, pin.frame))
            store_unpin(&pages->store, pin.frame);
    }
    pages->pins.count = kept;
    if (!kept && !pages->pins.unlisted)
        store_pins_are_gone(&pages->store);
    store_unlock(&pages->store);
}
