/*
 * Questions about memory that its owner may have unmapped, mapped over or protected since it was
 * looked at.  They are asked right before something is done to it; what the owner does between the
 * answer and that is not seen.
 */
#ifndef KSMPY_FREEZE_OWNER_H
#define KSMPY_FREEZE_OWNER_H

#include <stdbool.h>
#include <stdint.h>

#include "freeze/ops.h"

/*
 * Private memory of no file, readable and writable?  true also where only the whole text of
 * /proc/self/maps could tell.
 */
bool owner_may_write(struct freezer *fz, uintptr_t address, uint64_t n);
/* The same of overlays. */
bool owner_may_write_overlays(struct freezer *fz, uintptr_t address, uint64_t n);
/* Is it still registered with one of our userfaultfds? What others have mapped there is not. */
bool owner_kept_registered(const struct freezer *fz, uintptr_t address, uint64_t n);
/*
 * 0: each page is still protected that was; -ESTALE: one is not; or why nobody can tell.  Where its
 * owner has moved one away (mremap), what comes next is not, though the mapping may be the same
 * (MREMAP_DONTUNMAP).
 */
int owner_check_protected(struct freezer *fz, uintptr_t address, uint64_t n);
/* Is it still what was frozen, with the rights that an overlay has? */
bool owner_kept(struct freezer *fz, uintptr_t address, uint64_t n);
/* Overlays that were made read-only: are they still that? */
bool owner_kept_overlays(struct freezer *fz, uintptr_t address, uint64_t n);
/*
 * How many leading pages are alike, and whether they are memory, or overlays, that were made read-only
 * and are so still.  *read_only is true also where nothing is mapped, and where nobody can tell.
 */
uint64_t owner_left_read_only(struct freezer *fz, uintptr_t address, uint64_t n, bool overlays,
                              bool *read_only);

#endif
