/* How much memory unmerging may take. */
#include "merge/memory.h"

#include "base/pages.h"
#include "merge/merger.h"
#include "os/clock.h"
#include "os/memory.h"
#include "store/frames.h"

#define RESERVE 2048 /* pages that are left to the program: 8 MiB */
#define ALLOWED 16384 /* pages at one answer */
#define SCARCE 65536 /* pages: 256 MiB; where fewer are left nothing is kept that nothing uses */
#define GOOD_FOR_MS 100

static uint64_t left_of_memory(struct merger *merger)
{
    uint64_t left = os_memory_left(&merger->allowance.memory, NULL, 0);
    if (left >= SCARCE || !merger->pages->store.head->spare_frames)
        return left;
    store_flush_all(&merger->pages->store);
    return os_memory_left(&merger->allowance.memory, NULL, 0);
}

void memory_is_not_spared(struct merger *merger)
{
    if (merger->pages->store.head->spare_frames)
        left_of_memory(merger);
}

/*
 * An answer is asked for once in some MiB.  It is for a part of what is left only: others may ask
 * at the same time.  What unmerging has freed so far is given back first.
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
