/* Where mappings began before regions and overlays cut them into pieces: see freeze/borrow.c. */
#ifndef KSMPY_FREEZE_KNOWN_MAPPINGS_H
#define KSMPY_FREEZE_KNOWN_MAPPINGS_H

#include <stdint.h>

#include "freeze/ops.h"

/* What is known of the mapping that an address above its begin belonged to; or NULL. */
struct known_mapping *known_mapping_at(struct freezer *fz, uintptr_t address);
/* The one that begins there, which may be new, and take the place of another. */
struct known_mapping *known_mapping_note(struct freezer *fz, uintptr_t begin);
/*
 * What lies at the address is its owner's to unmap from now on: what was one mapping with it is not
 * believed to be so any more.
 */
void known_mapping_ends(struct freezer *fz, uintptr_t address);

#endif
