/*
 * Memory of the engine's own, as ksmpy_own_memory() tells: so that nobody registers it.  What the
 * functions of os/map.h map is noted by them.  Nothing fails: what there is no room to note is
 * not known.
 */
#ifndef KSMPY_OS_OWN_H
#define KSMPY_OS_OWN_H

#include <stddef.h>
#include <stdint.h>

void os_own(uintptr_t start, size_t bytes);
void os_disown(uintptr_t start, size_t bytes);

#endif
