/* Pages that were not merged, counted by the reason. */
#include "merge/refusal.h"

#include <errno.h>

#include "merge/merger.h"

void count_refusal(struct merger *merger, int error, uint64_t pages)
{
    struct ksmpy_scan_result *result = merger->result;
    if (merger->pages->store.away)
        return; /* they are not refused: the slice ends, and they are looked up again */
    if (error == -EBUSY) {
        merger->busy += pages;
        result->busy += pages;
    } else if (error == -ENOMEM || error == -ENOSPC || error == -EFBIG) {
        merger->no_memory += pages;
        result->no_memory += pages;
    } else if (error == -EDQUOT) {
        merger->no_budget += pages;
        result->no_budget += pages;
    } else {
        merger->differed += pages;
        result->differed += pages;
    }
}
