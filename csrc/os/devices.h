/*
 * May devices write into our memory behind the page tables, with no thread waiting?
 */
#ifndef KSMPY_OS_DEVICES_H
#define KSMPY_OS_DEVICES_H

#include <stdbool.h>

bool os_has_devices(void);
/* What tells of most of them: descriptors, some 2 us each, and what is counted as pinned. */
bool os_has_device_files(void);
/* What tells of the rest, which have no descriptor: mappings, some 0.2 us each, or longer. */
bool os_has_mapped_rings(void);

#endif
