/* Regions: their records, their page ids, and their order. */
#include "pages/regions.h"

#include "base/pages.h"
#include "base/rbtree.h"
#include "os/arena.h"
#include "os/proc_maps.h"
#include "pages/candidates.h"
#include "pages/pages.h"

static struct rb_arena region_arena(const struct pages *pages)
{
    return (struct rb_arena){.base = pages->regions.base, .stride = sizeof(struct region)};
}

uint32_t region_find(const struct pages *pages, uintptr_t address, uint64_t n)
{
    uint32_t found = NO_REGION, at = pages->by_address.root;
    while (at != RB_NONE) {
        const struct region *region = region_at(pages, at);
        bool ends_above = address < region->address + bytes_of(region->n);
        if (ends_above)
            found = at;
        at = rb_child(&region->by_address, ends_above ? RB_LEFT : RB_RIGHT);
    }
    bool overlaps = found != NO_REGION && region_at(pages, found)->address < address + bytes_of(n);
    return overlaps ? found : NO_REGION;
}

uint32_t region_from(const struct pages *pages, uintptr_t address)
{
    return region_find(pages, address, (UINTPTR_MAX - address) >> PAGE_SHIFT);
}

/* Links a region into the tree by address; it overlaps none that is there. */
static void link_by_address(struct pages *pages, uint32_t id)
{
    struct rb_arena arena = region_arena(pages);
    uint32_t parent = RB_NONE, at = pages->by_address.root;
    enum rb_side side = RB_LEFT;
    while (at != RB_NONE) {
        parent = at;
        side = region_at(pages, id)->address < region_at(pages, at)->address ? RB_LEFT : RB_RIGHT;
        at = rb_child(&region_at(pages, at)->by_address, side);
    }
    rb_link(&arena, &pages->by_address, id, parent, side);
}

static uint32_t take_record(struct pages *pages)
{
    uint32_t id = pages->free_region;
    if (id != NO_REGION) {
        pages->free_region = region_at(pages, id)->next;
        return id;
    }
    if (arena_grow(&pages->regions, (uint64_t)pages->region_count + 1) < 0)
        return NO_REGION;
    return pages->region_count++;
}

static void give_record(struct pages *pages, uint32_t id)
{
    *region_at(pages, id) = (struct region){.next = pages->free_region};
    pages->free_region = id;
}

static uint64_t chunks_of(uint64_t pages)
{
    return (pages + CHUNK - 1) >> CHUNK_SHIFT;
}

/* Takes page ids for a region, and memory for their records; NO_PAGE if there is none. */
static uint32_t take_pages(struct pages *pages, uint64_t n)
{
    uint64_t chunks = chunks_of(n), got = chunks;
    uint32_t first = ids_take(&pages->chunks, &got);
    if (first == NO_INDEX)
        return NO_PAGE;
    bool room = got == chunks && arena_grow(&pages->chunk_records, first + chunks) == 0 &&
                arena_grow(&pages->records, (first + chunks) << CHUNK_SHIFT) == 0 &&
                candidates_grow(pages, pages->registered + n) == 0;
    if (!room)
        ids_give(&pages->chunks, first, got);
    return room ? first << CHUNK_SHIFT : NO_PAGE;
}

static void give_pages(struct pages *pages, const struct region *region)
{
    ids_give(&pages->chunks, region->base >> CHUNK_SHIFT, chunks_of(region->n));
}

void region_enlist(struct pages *pages)
{
    uint32_t id = pages->arriving;
    struct region *region = region_at(pages, id);
    pages->arriving = NO_REGION;
    region->used = true;
    region->next = NO_REGION;
    region->previous = pages->last_region;
    if (pages->last_region == NO_REGION)
        pages->first_region = id;
    else
        region_at(pages, pages->last_region)->next = id;
    pages->last_region = id;
    link_by_address(pages, id);
    pages->registered += region->n;
    pages->pages_in[PAGE_NEW] += region->n;
}

static void unlist(struct pages *pages, uint32_t id)
{
    const struct region *region = region_at(pages, id);
    if (region->previous == NO_REGION)
        pages->first_region = region->next;
    else
        region_at(pages, region->previous)->next = region->next;
    if (region->next == NO_REGION)
        pages->last_region = region->previous;
    else
        region_at(pages, region->next)->previous = region->previous;
    struct rb_arena arena = region_arena(pages);
    rb_erase(&arena, &pages->by_address, id);
    pages->registered -= region->n;
    pages->copies -= region->copies;
    pages->pages_in[PAGE_NEW] -= region->n;
}

uint32_t region_arrive(struct pages *pages, uintptr_t address, uint64_t n, int vma_flags)
{
    uint32_t id = take_record(pages);
    if (id == NO_REGION)
        return NO_REGION;
    uint32_t base = take_pages(pages, n);
    if (base == NO_PAGE) {
        give_record(pages, id);
        return NO_REGION;
    }
    struct region *region = region_at(pages, id);
    *region = (struct region){.growing = vma_flags & KSMPY_VMA_GROWING,
                              .vma_flags = vma_flags & ~KSMPY_VMA_GROWING,
                              .address = address,
                              .serial = ++pages->registrations,
                              .n = n,
                              .base = base};
    region->pages_in[PAGE_NEW] = n;
    pages->arriving = id;
    return id;
}

bool region_prepare_some(struct pages *pages, uint64_t *first)
{
    const struct region *region = region_at(pages, pages->arriving);
    uint64_t end = least(*first + CHUNK, region->n);
    if (*first == end)
        return false;
    *chunk_of(pages, region->base + (uint32_t)*first) =
        (struct chunk){.region = pages->arriving, .unsettled = (uint16_t)(end - *first)};
    for (; *first < end; ++*first)
        *page_record(pages, region->base + (uint32_t)*first) = (struct page){.link = NO_INDEX};
    return true;
}

static void unmake(struct pages *pages, uint32_t id)
{
    give_pages(pages, region_at(pages, id));
    give_record(pages, id);
}

void region_forget_arriving(struct pages *pages)
{
    if (pages->arriving != NO_REGION)
        unmake(pages, pages->arriving);
    pages->arriving = NO_REGION;
}

bool region_is_known(const struct pages *pages, uint32_t region)
{
    return region < pages->region_count && region_at(pages, region)->used;
}

bool region_is(const struct pages *pages, uint32_t id, uint64_t serial)
{
    return id < pages->region_count && region_at(pages, id)->used &&
           region_at(pages, id)->serial == serial;
}

void region_remove(struct pages *pages, uint32_t id)
{
    unlist(pages, id);
    unmake(pages, id);
}

bool memory_is_plain(struct pages *pages, uintptr_t address, uint64_t n)
{
    uintptr_t at = address, end = address + bytes_of(n);
    struct os_vma vma;
    os_maps_refresh(&pages->maps);
    while (at < end) {
        int found = os_maps_find(&pages->maps, at, &vma);
        if (found <= 0 || vma.start > at || !vma.private_rw || vma.inode)
            return false;
        at = vma.end;
    }
    return true;
}
