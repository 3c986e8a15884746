/*
 * Functions of the C library that the other shared objects of the process call, led to functions of
 * the engine's.  What an object calls stands in its global offset table, which the dynamic linker
 * fills.
 *
 * Left as they are: objects that define the function themselves or have it from elsewhere, the
 * C library's calls of itself, the object in which the engine is, and what dlsym() hands out.
 */
#ifndef KSMPY_OS_IMPORTS_H
#define KSMPY_OS_IMPORTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct os_import {
    const char *name;
    uintptr_t theirs, ours; /* the function of that name; and who is to be called */
};

/*
 * Leads all that is loaded there, unless nothing was loaded for a while, or another thread is about to
 * do so.  An object that is just being loaded follows at a later call.  The imports are ordered by
 * name and stay.
 *
 * It waits for the dynamic linker's lock.  Whoever has that may be running code of the program's for
 * each object (dl_iterate_phdr() by way of ctypes, as threadpoolctl does), which wants the
 * interpreter's lock, and any other.  So the caller must hold nothing that others wait for.
 */
void os_imports_lead(const struct os_import *imports, size_t n);
/*
 * Around a fork.  A child must not find the linker's lock taken by a thread that it does not have:
 * a look under way is waited for, and none begins before the fork is over.
 */
void os_imports_before_fork(void);
void os_imports_after_fork(bool in_child);

#endif
