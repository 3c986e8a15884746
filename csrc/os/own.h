/*
 * Memory of the engine's own, as os_own_memory() tells: so that nobody registers it.  What the
 * functions of os/map.h map is noted by them.  Nothing fails: what there is no room to note is
 * not known.
 */
#ifndef KSMPY_OS_OWN_H
#define KSMPY_OS_OWN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ksmpy.h"

void os_own(uintptr_t start, size_t bytes);
void os_disown(uintptr_t start, size_t bytes);
bool os_owns(uintptr_t address);
/* Writes up to max ranges, the module's variables among them; returns how many there are. */
int64_t os_own_memory(struct ksmpy_range *out, int64_t max);

#endif
