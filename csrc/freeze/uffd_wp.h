/*
 * Freezing by write protection: readers go on, and writers sleep in the kernel.
 */
#ifndef KSMPY_FREEZE_UFFD_WP_H
#define KSMPY_FREEZE_UFFD_WP_H

#include "freeze/ops.h"

extern const struct freezer_ops freeze_by_protection;

#endif
