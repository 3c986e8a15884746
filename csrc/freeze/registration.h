/*
 * Which ranges belong to a freezer: its regions, and the overlays in them.
 *
 * To register fails with -EINVAL (memory of a kind that cannot be), -EBUSY (another userfaultfd has
 * it) or -ENOMEM (no mappings left).
 */
#ifndef KSMPY_FREEZE_REGISTRATION_H
#define KSMPY_FREEZE_REGISTRATION_H

#include <stdint.h>

#include "freeze/ops.h"

/* Fills holes, where the way of freezing needs that; to be called before the range is attached. */
int freezer_fill_holes(struct freezer *fz, uintptr_t address, uint64_t n);
int freezer_attach(struct freezer *fz, uintptr_t address, uint64_t n);

/* How many mappings more it may take to attach a range. */
uint64_t freezer_mappings(const struct freezer *fz);
int freezer_detach(struct freezer *fz, uintptr_t address, uint64_t n);
/*
 * From now on writes to overlays in the range are noted, if the freezer tracks at all; or -errno.
 * Should the owner have put other memory there, that is registered as its own memory would be.
 */
int freezer_track_overlay(struct freezer *fz, uintptr_t address, uint64_t n);
/*
 * Has madvise() on a new overlay noticed.  To be called at once: a thread that gives the memory
 * back before finds the frame's bytes there.
 */
void freezer_watch_overlay(struct freezer *fz, uintptr_t address, uint64_t n);

#endif
