/*
 * May devices write into our memory behind the page tables, with no thread waiting?
 */
#ifndef KSMPY_OS_DEVICES_H
#define KSMPY_OS_DEVICES_H

#include <stdbool.h>

bool os_has_devices(void);

#endif
