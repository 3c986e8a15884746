/* Pages that were not merged, counted by the reason. */
#ifndef KSMPY_MERGE_REFUSAL_H
#define KSMPY_MERGE_REFUSAL_H

#include "merge/merger.h"

/*
 * Counts pages that were refused with `error`; what is neither -EBUSY nor a lack means other bytes.
 */
void count_refusal(struct merger *merger, int error, uint64_t pages);

#endif
