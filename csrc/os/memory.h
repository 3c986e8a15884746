/*
 * Memory that is left, in this machine and in our cgroups.  To open fails with -ENOMEM; what cannot
 * be read limits nothing.
 */
#ifndef KSMPY_OS_MEMORY_H
#define KSMPY_OS_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#define OS_CGROUP_PATH 512

struct os_memory {
    char *text;               /* room for what files say */
    char path[2][OS_CGROUP_PATH]; /* of the memory cgroup, of version 1 and 2; or empty */
    size_t top[2];            /* length of that of the highest one that is seen from here */
    uint64_t looked_ms;       /* when they were looked for */
};

int os_memory_open(struct os_memory *memory);
void os_memory_close(struct os_memory *memory);
/*
 * Pages that this process may still take before somebody is killed for it.  which: NULL, or room
 * for the path of the cgroup that allows the least, "the machine", or nothing.
 */
uint64_t os_memory_left(struct os_memory *memory, char *which, size_t size);
uint64_t os_memory_pages(void); /* that the machine has */

#endif
