/* Shadows for which no page of the region has to go away: no reader can miss one. */
#ifndef KSMPY_FREEZE_BORROW_H
#define KSMPY_FREEZE_BORROW_H

#include <stdint.h>

#include "freeze/ops.h"

/* A shadow from the empty place below the region's mapping; 0 where there is none. */
uintptr_t shadow_by_borrowing(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags);
/* The places that were kept for the next ones are given up. */
void borrow_close(struct freezer *fz);

#endif
