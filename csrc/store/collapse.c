#include "store/collapse.h"

#include <errno.h>

#include "base/pages.h"
#include "os/files.h"
#include "os/folios.h"
#include "os/map.h"
#include "store/extents.h"
#include "store/files.h"
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
    for (uint64_t i = 0; i < n; i += EXTENT) {
        if (!store_has_write_file(store))
            return -EBADF;
        os_put(store->write_fd, frame_offset(store, first + (uint32_t)i), "", 1);
    }
    return os_collapse((uintptr_t)in_view(store, first), n);
}

int extent_collapse(const struct store *store, uint32_t extent)
{
    return os_collapse((uintptr_t)in_view(store, extent), EXTENT);
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

/*
 * An extent may lie on a huge page all the same, or in what was left of one.  There is nothing in it
 * yet, so it is punched.  Where that fails, or the lock is not to be had, it counts as one that lies on
 * larger folios, which loses some memory, but no byte.
 */
static void note_small(struct store *store, uint32_t extent)
{
    bool gone = os_punch(store->write_fd, frame_offset(store, extent), bytes_of(EXTENT)) == 0;
    if (!store_lock(store))
        return;
    if (gone && !store->large_folios)
        extent_becomes_plain(store, extent);
    else
        extent_is_torn(store, extent);
    store_unlock(store);
}

/* Of an extent on a huge page nothing could be given back without that (see store/references.h). */
static bool can_be_let_go(struct store *store, uint32_t extent)
{
    store->tells_huge = os_file_is_huge(store->memfd, frame_offset(store, extent), 0) == 1;
    return store->tells_huge;
}

void extents_collapsed(struct store *store, uint32_t first, uint64_t n, uint64_t huge, int error)
{
    for (uint64_t i = 0; error && i < n / EXTENT && store_has_files(store); i++)
        if (!(huge >> i & 1))
            note_small(store, first + (uint32_t)(i * EXTENT));
    if (!error && !store->tells_huge && !can_be_let_go(store, first))
        error = -EOPNOTSUPP;
    store->huge_failures =
        !error ? 0 : store->huge_failures + (store->huge_failures < LONGEST_PAUSE);
    store->huge_pause = error ? 1U << store->huge_failures : 0;
}
