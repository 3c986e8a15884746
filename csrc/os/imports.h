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

#include <stddef.h>
#include <stdint.h>

struct os_import {
    const char *name;
    uintptr_t theirs, ours; /* the function of that name; and who is to be called */
};

/*
 * Leads all that is loaded there, unless nothing was loaded since the last call, or another thread is
 * about to do so.  An object that is just being loaded follows at a later call.  The imports are
 * ordered by name and stay.  Forks are to be kept away, as the linker's lock is held.
 */
void os_imports_lead(const struct os_import *imports, size_t n);

#endif
