/*
 * What the kernel offers, found out by trying.
 */
#ifndef KSMPY_OS_PROBE_H
#define KSMPY_OS_PROBE_H

#include "ksmpy.h"

void os_probe(struct ksmpy_caps *caps);
/* 0: files in memory can have huge pages; or why not, as os_collapse() says. */
int os_try_huge_file(void);

#endif
