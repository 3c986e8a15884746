/*
 * Freezing by taking pages away, with userfaultfd: by moving them, or by remapping.
 */
#ifndef KSMPY_FREEZE_UFFD_AWAY_H
#define KSMPY_FREEZE_UFFD_AWAY_H

#include "freeze/ops.h"

extern const struct freezer_ops freeze_by_moving;
extern const struct freezer_ops freeze_by_remapping;

#endif
