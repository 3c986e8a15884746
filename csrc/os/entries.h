/*
 * The entries of a directory, read without memory from malloc's heap.
 */
#ifndef KSMPY_OS_ENTRIES_H
#define KSMPY_OS_ENTRIES_H

#include <stdbool.h>

typedef bool os_visit(const char *name, void *data); /* true: no more of them */
/*
 * All but those whose names begin with a dot, from the first one on.  1: visit() said true at one
 * of them; 0: it did not; or -errno.
 */
int os_each_entry(int fd, os_visit *visit, void *data);

#endif
