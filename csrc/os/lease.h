/*
 * A lease: a lock on one byte of a file that lives as long as somebody maps it (a forked child does).
 * To take one may fail with -EAGAIN (it is held), -ENOMEM, or as open() does.
 */
#ifndef KSMPY_OS_LEASE_H
#define KSMPY_OS_LEASE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/pages.h"

KSMPY_MAY_REFUSE int os_lease_take(int lease_fd, uint64_t number, void **lease);
void os_lease_drop(void *lease);
bool os_lease_held(int lease_fd, uint64_t number);

#endif
