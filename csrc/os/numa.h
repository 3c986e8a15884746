/*
 * Nodes of memory: where pages are, and where new ones go; or a negative errno.
 */
#ifndef KSMPY_OS_NUMA_H
#define KSMPY_OS_NUMA_H

#include <stddef.h>
#include <stdint.h>

/* Node numbers of n pages (negative errno for a page without one). */
int os_nodes(uintptr_t address, uint64_t n, int *nodes);
int os_bind(void *address, size_t bytes, int node);

#endif
