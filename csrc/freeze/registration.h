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

/* Before a range is attached, as a whole or part by part. */
int freezer_fill_holes(struct freezer *fz, uintptr_t address, uint64_t n);
int freezer_attach(struct freezer *fz, uintptr_t address, uint64_t n);

/* How many mappings more that may take. */
uint64_t freezer_mappings(const struct freezer *fz);
int freezer_detach(struct freezer *fz, uintptr_t address, uint64_t n);
/*
 * From now on writes to overlays in the range are noted, if the freezer tracks at all; or -errno.
 * Should the owner have put other memory there, that is registered as its own memory would be.
 */
int freezer_track_overlay(struct freezer *fz, uintptr_t address, uint64_t n);
/* A new overlay, of a short run as well. At once: who gives it back before finds the frame's bytes. */
void freezer_watch_overlay(struct freezer *fz, uintptr_t address, uint64_t n);

#endif
