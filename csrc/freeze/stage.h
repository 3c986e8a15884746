/*
 * The stage holds copies of up to FREEZE_MAX overlay pages on their way back.  A sliding one lends
 * its pages themselves: what was moved away is followed by fresh ones.
 */
#ifndef KSMPY_FREEZE_STAGE_H
#define KSMPY_FREEZE_STAGE_H

#include <stdint.h>

#include "freeze/ops.h"

/* -ENOMEM: then a stage that is there stays. */
int stage_open(struct freezer *fz);
/* The same where there is none. */
int stage_need(struct freezer *fz);
void stage_slide(struct freezer *fz, uint64_t n); /* past n pages that were moved away */
void stage_close(struct freezer *fz);
/* Copies pages to where there are none, in memory that fd is registered for missing pages of. */
int stage_fill(int fd, uintptr_t to, uintptr_t from, uint64_t n);
/*
 * Overlay pages, which nobody can write now, become anonymous memory with their bytes, in one step:
 * from the shadow, or where there is none from the stage, and that costs mappings.  Those of a huge
 * page come from the shadow (-ENOENT).
 */
int stage_bring_back(struct freezer *fz, uintptr_t address, uint64_t n, uintptr_t shadow,
                     int vma_flags);

#endif
