/*
 * Write protection by a userfaultfd that blocks: writers of protected memory wait.
 */
#ifndef KSMPY_FREEZE_PROTECTION_H
#define KSMPY_FREEZE_PROTECTION_H

#include <stdint.h>

#include "freeze/ops.h"

int freezer_let_writers_go(struct freezer *fz, uintptr_t address, uint64_t n);
/*
 * Gives overlays to the gate, and makes their writers wait; and the way back, after which they do
 * not wait even if the kernel cannot take the overlays from the gate.  Those who wait already are
 * to be woken by the caller.
 */
int freezer_take_overlays(struct freezer *fz, uintptr_t address, uint64_t n);
void freezer_leave_overlays(struct freezer *fz, uintptr_t address, uint64_t n);
/*
 * Makes writers wait for memory that is to be frozen in place.  A page that was not there could not
 * be protected, and may be there by now: it counts as a hole.
 */
int freezer_block_in_place(struct freezer *fz, uintptr_t address, uint64_t n);

#endif
