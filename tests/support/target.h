/*
 * Which shared object a preloaded library is about: a call is recognised by its
 * return address.  For one .c file of each library, which defines _GNU_SOURCE first.
 */
#ifndef TESTS_SUPPORT_TARGET_H
#define TESTS_SUPPORT_TARGET_H

#include <link.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static uintptr_t target_start, target_end;

static int find_object(struct dl_phdr_info *info, size_t size, void *part)
{
    (void)size;
    if (!strstr(info->dlpi_name, part))
        return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        uintptr_t end = info->dlpi_addr + segment->p_vaddr + segment->p_memsz;

        if (segment->p_type == PT_LOAD && end > target_end)
            target_end = end;
    }
    target_start = info->dlpi_addr;
    return 1;
}

/* Chooses the shared object by a part of its path; 1 if it is loaded. */
static int choose_target(const char *part)
{
    target_start = target_end = 0;
    return dl_iterate_phdr(find_object, (void *)part);
}

static bool in_target(uintptr_t site)
{
    return target_start <= site && site < target_end;
}

#endif
