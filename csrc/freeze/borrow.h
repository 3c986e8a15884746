/* Shadows for which no page of the region has to go away: no reader can miss one. */
#ifndef KSMPY_FREEZE_BORROW_H
#define KSMPY_FREEZE_BORROW_H

#include <stdint.h>

#include "freeze/ops.h"

/*
 * A shadow by way of a page that is mapped below the region's mapping; 0 if that place is not free,
 * or the page does not become a part of the mapping.
 */
uintptr_t shadow_by_borrowing(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags);
/* Gives up the places that are reserved for further shadows. */
void borrow_close(struct freezer *fz);

#endif
