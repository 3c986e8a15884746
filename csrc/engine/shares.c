/* Who shares with whom: how many pages any two regions have in common. */
#include <errno.h>
#include <stdlib.h>

#include "base/pages.h"
#include "engine/locks.h"
#include "pages/pages.h"
#include "pages/regions.h"

struct entry { /* pages of a region on a frame; or common pages of two regions */
    uint64_t key;
    uint64_t pages;
};

struct entries {
    struct entry *list;
    size_t count, room;
};

static int by_key(const void *a, const void *b)
{
    uint64_t x = ((const struct entry *)a)->key, y = ((const struct entry *)b)->key;
    return x < y ? -1 : x > y;
}

/* Sorts the entries, and makes one of all that have the same key. */
static void add_up(struct entries *entries)
{
    size_t kept = 0;
    if (entries->count)
        qsort(entries->list, entries->count, sizeof *entries->list, by_key);
    for (size_t i = 0; i < entries->count; i++) {
        if (kept && entries->list[kept - 1].key == entries->list[i].key)
            entries->list[kept - 1].pages += entries->list[i].pages;
        else
            entries->list[kept++] = entries->list[i];
    }
    entries->count = kept;
}

static bool push(struct entries *entries, uint64_t key, uint64_t pages)
{
    if (entries->count == entries->room) {
        add_up(entries);
        if (entries->count * 2 >= entries->room) {
            size_t room = entries->room ? entries->room * 2 : 1024;
            struct entry *list = realloc(entries->list, room * sizeof *list);
            if (!list)
                return false;
            entries->list = list;
            entries->room = room;
        }
    }
    entries->list[entries->count++] = (struct entry){key, pages};
    return true;
}

#define LISTED_AT_ONCE (16 * CHUNK) /* pages looked at while the engine's lock is held */

/*
 * Lists pages on frames from address *at on, in order of addresses, and moves *at on; how many, or
 * -1 when no region is left.  Keys have the frame in their upper half, the region in their lower.
 */
static int64_t list_sharers(const struct pages *pages, uintptr_t *at, uint64_t *keys)
{
    uint32_t id = region_from(pages, *at);
    if (id == NO_REGION)
        return -1;
    const struct region *region = region_at(pages, id);
    uint64_t first = region_page_from(region, *at);
    uint64_t end = least(region->n, first + LISTED_AT_ONCE);
    int64_t count = 0;
    if (!region->pages_in[PAGE_SHARED])
        first = end = region->n;
    for (uint64_t i = first; i < end; i++) {
        const struct page *page = page_record(pages, region->base + (uint32_t)i);
        if (page_state(page) == PAGE_SHARED)
            keys[count++] = (uint64_t)page->link << 32 | id;
    }
    *at = region->address + bytes_of(end);
    return count;
}

/* The lock is not held while the list grows and is sorted. */
static bool collect_sharers(ksmpy_engine *engine, struct entries *sharers)
{
    uint64_t *keys = malloc(LISTED_AT_ONCE * sizeof *keys);
    int64_t count = 0;
    bool room = keys != NULL;
    for (uintptr_t at = 0; room && count >= 0;) {
        engine_lock(engine);
        count = list_sharers(&engine->pages, &at, keys);
        engine_unlock(engine);
        for (int64_t i = 0; i < count && room; i++)
            room = push(sharers, keys[i], 1);
    }
    free(keys);
    add_up(sharers);
    return room;
}

/*
 * Adds an entry for each two regions among the sharers [first, end) of one frame, and for a region
 * with itself when it has more than one page there.
 */
static bool pair_up(const struct entries *sharers, size_t first, size_t end, struct entries *pairs)
{
    for (size_t a = first; a < end; a++)
        for (size_t b = a; b < end; b++) {
            uint64_t x = sharers->list[a].pages, y = sharers->list[b].pages;
            uint64_t pages = a == b ? x - 1 : x < y ? x : y;
            uint64_t key = sharers->list[a].key << 32 | (uint32_t)sharers->list[b].key;
            if (pages && !push(pairs, key, pages))
                return false;
        }
    return true;
}

static bool collect_pairs(const struct entries *sharers, struct entries *pairs)
{
    for (size_t first = 0, end; first < sharers->count; first = end) {
        uint64_t frame = sharers->list[first].key >> 32;
        for (end = first + 1; end < sharers->count && sharers->list[end].key >> 32 == frame; end++)
            ;
        if (!pair_up(sharers, first, end, pairs))
            return false;
    }
    add_up(pairs);
    return true;
}

int64_t ksmpy_shares(ksmpy_engine *engine, struct ksmpy_share *out, int64_t max)
{
    struct entries sharers = {0}, pairs = {0};
    int64_t count = -ENOMEM;
    if (engine->pages.forked)
        return -EPERM;
    if (collect_sharers(engine, &sharers) && collect_pairs(&sharers, &pairs)) {
        count = (int64_t)pairs.count;
        for (int64_t i = 0; i < count && i < max; i++) {
            uint64_t key = pairs.list[i].key;
            out[i] =
                (struct ksmpy_share){(uint32_t)(key >> 32), (uint32_t)key, pairs.list[i].pages};
        }
    }
    free(sharers.list);
    free(pairs.list);
    return count;
}
