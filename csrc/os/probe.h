/*
 * What the kernel offers, found out by trying.
 */
#ifndef KSMPY_OS_PROBE_H
#define KSMPY_OS_PROBE_H

#include "ksmpy.h"

void os_probe(struct ksmpy_caps *caps);

#endif
