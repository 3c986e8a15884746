/*
 * Giving overlay pages their bytes back: what the ways of freezing have in common.
 */
#ifndef KSMPY_FREEZE_REPLACE_H
#define KSMPY_FREEZE_REPLACE_H

#include <stdint.h>

#include "freeze/ops.h"

/*
 * May a device write into overlay pages that no thread can write now?  -EBUSY if one of them is a
 * copy that direct I/O may be writing to.
 */
int freezer_still(struct freezer *fz, uintptr_t address, uint64_t n);
/* Copies what pages show; -EFAULT: a part of them is gone. */
int freezer_copy(uintptr_t to, uintptr_t address, uint64_t n);
/*
 * Moves the memory at from over overlay pages, if they are still there (-ESTALE); should the target
 * be lost meanwhile, it is rebuilt.  Where nothing could be mapped any more the memory at from has gone
 * along (fz->moved_for_good), and others may map theirs there.
 */
int freezer_replace(struct freezer *fz, uintptr_t address, uintptr_t from, uint64_t n);

#endif
