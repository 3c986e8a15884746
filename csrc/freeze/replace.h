/*
 * Giving overlay pages their bytes back: what the ways of freezing have in common.
 */
#ifndef KSMPY_FREEZE_REPLACE_H
#define KSMPY_FREEZE_REPLACE_H

#include <stdint.h>

#include "freeze/ops.h"

/* Of memory that a userfaultfd has which blocks. */
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
/*
 * May a device write into overlay pages that no thread can write now?  -EBUSY if one of them is a
 * copy that direct I/O may be writing to.
 */
int freezer_still(struct freezer *fz, uintptr_t address, uint64_t n);
/* Copies what pages show; -EFAULT: a part of them is gone. */
int freezer_copy(uintptr_t to, uintptr_t address, uint64_t n);
/*
 * Moves the memory at from over overlay pages, if they are still there (-ESTALE); should the target
 * be lost meanwhile, it is rebuilt.
 */
int freezer_replace(struct freezer *fz, uintptr_t address, uintptr_t from, uint64_t n);

#endif
