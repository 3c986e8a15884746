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
#include "os/uffd.h"

/* How memory of regions is registered with their userfaultfd (enum os_uffd_mode); 0: not at all. */
static inline int freezer_registration(const struct freezer *fz)
{
    return fz->ops->registration | (fz->tracked ? OS_UFFD_WP : 0);
}

int freezer_attach(struct freezer *fz, uintptr_t address, uint64_t n);
/* As memory of a region's own, of which nobody is told when it is given back. */
int freezer_register(struct freezer *fz, uintptr_t address, uint64_t n);
int freezer_home(const struct freezer *fz); /* the userfaultfd that has it then, or -1 */
/* The owner may have put something else into a part of the range, which is passed over. */
typedef int freezer_change(int fd, uintptr_t address, uint64_t n);
void freezer_change_what_can_be(freezer_change *change, int fd, uintptr_t address, uint64_t n);
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
