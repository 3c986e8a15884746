/*
 * Memory of the engine's own, as os_own_memory() tells: so that nobody registers it.  What the
 * functions of os/map.h map is noted by them.  Nothing fails: what there is no room to note is
 * not known.
 */
#ifndef KSMPY_OS_OWN_MEMORY_H
#define KSMPY_OS_OWN_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/pages.h"
#include "ksmpy.h"

void os_own(uintptr_t start, size_t bytes);
/*
 * The engine can do without so many bytes that follow some of its memory.  They are two pages: one
 * that others may need, and one that keeps it apart, since the kernel would merge it with the rest.
 */
#define OS_SPARE (2 * PAGE_SIZE)
void os_own_with_spare(uintptr_t start, size_t bytes);
/* Do these bytes end there? Then they are the caller's from now on, who has to unmap them. */
bool os_take_spare(uintptr_t end);
/* Returns how many bytes that follow are to be unmapped as well: OS_SPARE or 0. */
size_t os_disown(uintptr_t start, size_t bytes);
bool os_owns(uintptr_t address);
/* Writes up to max ranges, the module's variables among them; returns how many there are. */
int64_t os_own_memory(struct ksmpy_range *out, int64_t max);

#endif
