/* How much memory unmerging may take. */
#include "merge/memory.h"

#include "base/pages.h"
#include "merge/merger.h"
#include "os/clock.h"
#include "os/memory.h"
#include "store/extents.h"
#include "store/frames.h"

#define RESERVE 2048  /* pages that are left to the program: 8 MiB */
#define ALLOWED 16384 /* the most pages that one answer allows: 64 MiB */
#define SCARCE 65536  /* pages: 256 MiB; with less left, spare frames are given back */
#define GOOD_FOR_MS 100 /* for which an answer is used, as others take memory too */

static uint64_t left_of_memory(struct merger *merger)
{
    uint64_t left = os_memory_left(&merger->allowance.memory, NULL, 0);
    if (left >= SCARCE || !store_spare_frames(&merger->pages->store))
        return left;
    store_flush_all(&merger->pages->store);
    return os_memory_left(&merger->allowance.memory, NULL, 0);
}

void memory_is_not_spared(struct merger *merger)
{
    if (store_spare_frames(&merger->pages->store))
        left_of_memory(merger);
}

/*
 * The system is asked once for some MiB.  An answer allows only an eighth of what is left, as
 * others may ask at the same time.  Frames that came free meanwhile are given back first.
 */
bool memory_allows(struct merger *merger, uint64_t n)
{
    uint64_t now = os_now_ms();
    if (merger->allowance.pages < n || now - merger->allowance.asked_ms > GOOD_FOR_MS) {
        store_flush(&merger->pages->store);
        uint64_t left = left_of_memory(merger);
        left = left > RESERVE ? left - RESERVE : 0;
        merger->allowance.pages = left / 8 > n ? least(left / 8, ALLOWED) : least(left, n);
        merger->allowance.asked_ms = now;
    }
    if (merger->allowance.pages < n)
        return false;
    merger->allowance.pages -= n;
    return true;
}
