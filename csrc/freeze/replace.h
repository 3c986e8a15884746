/*
 * Giving overlay pages their bytes back: what the ways of freezing have in common.
 */
#ifndef KSMPY_FREEZE_REPLACE_H
#define KSMPY_FREEZE_REPLACE_H

#include <stdint.h>

#include "freeze/ops.h"

/* Protects what belongs to wp_fd: from then on its writers wait. */
int freezer_block_writers(struct freezer *fz, uintptr_t address, uint64_t n);
int freezer_let_writers_go(struct freezer *fz, uintptr_t address, uint64_t n);
/*
 * Overlays belong to the gate, and their writers wait; and do so no more, also where the kernel does
 * not take them from it. Who waits already is to be woken.
 */
int freezer_take_overlays(struct freezer *fz, uintptr_t address, uint64_t n);
void freezer_leave_overlays(struct freezer *fz, uintptr_t address, uint64_t n);
/*
 * The same of what is to be frozen where it is.  A page that was not there could not be protected,
 * and may have come meanwhile: a hole.
 */
int freezer_block_in_place(struct freezer *fz, uintptr_t address, uint64_t n);
/* Of overlay pages that no thread can write now: -EBUSY when a device may do so, into a copy. */
int freezer_still(struct freezer *fz, uintptr_t address, uint64_t n);
/* What they show, to the stage; -EFAULT: a part of them is gone. */
int freezer_copy(uintptr_t to, uintptr_t address, uint64_t n);
/*
 * Moves the memory at from over overlay pages, if they are still there (-ESTALE); should the target
 * be lost meanwhile, it is rebuilt.
 */
int freezer_replace(struct freezer *fz, uintptr_t address, uintptr_t from, uint64_t n);

#endif
