/*
 * Work that needs a free descriptor, when the process may have no more.
 */
#ifndef KSMPY_OS_APART_H
#define KSMPY_OS_APART_H

#include <errno.h>
#include <stdbool.h>

typedef void os_work(void *data);

/*
 * Does the work where one can be opened, though the process may have no more; it takes 32 KiB of
 * stack, and is not to lock anything.  Descriptor 0 is not there then.
 */
int os_apart(os_work *work, void *data);
static inline bool os_is_crowded(int error)
{
    return error == -EMFILE || error == -ENFILE;
}

#endif
