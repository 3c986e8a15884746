#include "store/collapse.h"

#include "base/pages.h"
#include "os/files.h"
#include "os/map.h"
#include "store/extents.h"
#include "store/lock.h"
#include "store/store.h"

/*
 * log2 of the most tries that are left out after failures in a row: 512 MADV_COLLAPSE calls that
 * would mostly fail, against a huge page that could be had again and is not asked for.
 */
#define LONGEST_PAUSE 9

bool extents_can_be_had(struct store *store)
{
    if (!store->huge_pause)
        return true;
    store->huge_pause--;
    return false;
}

static void *in_view(const struct store *store, uint32_t frame)
{
    return page_at((uintptr_t)store->memory, frame);
}

/*
 * 0 if every extent lies on a huge page now, or else the last error, with which some of them may
 * lie on one.  A byte is written to each first, since MADV_COLLAPSE passes over what has no page.
 */
static int collapse(const struct store *store, uint32_t first, uint64_t n)
{
    for (uint64_t i = 0; i < n; i += EXTENT)
        os_put(store->write_fd, frame_offset(store, first + (uint32_t)i), "", 1);
    return os_collapse((uintptr_t)in_view(store, first), n);
}

/*
 * One call is made for all of them, since each makes all processors give back their lists of free
 * pages.  Only after an error they are tried one by one, to learn which lie on huge pages.
 */
uint64_t extents_collapse(const struct store *store, uint32_t first, uint64_t n, int *error)
{
    uint64_t huge = 0;
    *error = collapse(store, first, n);
    for (uint64_t i = 0; i < n / EXTENT; i++)
        if (!*error || (n > EXTENT && !collapse(store, first + (uint32_t)(i * EXTENT), EXTENT)))
            huge |= (uint64_t)1 << i;
    return huge;
}

static void note_huge(struct store *store, uint32_t first, uint64_t huge)
{
    if (!huge || !store_lock(store))
        return; /* they are treated as frames like others then */
    for (uint64_t i = 0; i < MOST_EXTENTS; i++)
        if (huge >> i & 1)
            extent_becomes_huge(store, first + (uint32_t)(i * EXTENT));
    store_unlock(store);
}

void extents_collapsed(struct store *store, uint32_t first, uint64_t huge, int error)
{
    note_huge(store, first, huge);
    store->huge_error = error;
    store->huge_failures =
        !error ? 0 : store->huge_failures + (store->huge_failures < LONGEST_PAUSE);
    store->huge_pause = error ? 1U << store->huge_failures : 0;
}
