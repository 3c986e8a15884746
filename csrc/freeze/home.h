/*
 * The userfaultfd that a region's memory is at home with.  To register fails as in
 * freeze/registration.h.
 */
#ifndef KSMPY_FREEZE_HOME_H
#define KSMPY_FREEZE_HOME_H

#include <stdint.h>

#include "freeze/ops.h"
#include "os/uffd.h"

/* How memory of regions is registered with their userfaultfd (enum os_uffd_mode); 0: not at all. */
static inline int freezer_registration(const struct freezer *fz)
{
    return fz->ops->registration | (fz->tracked ? OS_UFFD_WP : 0);
}
/* Registers memory as a region's own: nobody is told when its owner gives it back. */
int freezer_register(struct freezer *fz, uintptr_t address, uint64_t n);
int freezer_home(const struct freezer *fz); /* the userfaultfd that has such memory, or -1 */
/*
 * Calls change() for a range and, if that fails, for ever smaller parts of it: the owner may have
 * put something else into a part, which is passed over.
 */
typedef int freezer_change(struct freezer *fz, uintptr_t address, uint64_t n);
void freezer_change_what_can_be(struct freezer *fz, freezer_change *change, uintptr_t address,
                                uint64_t n);

#endif
