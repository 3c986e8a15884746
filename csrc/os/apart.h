/*
 * Questions that take a free descriptor, when the process may have no more.
 */
#ifndef KSMPY_OS_APART_H
#define KSMPY_OS_APART_H

#include <errno.h>
#include <stdbool.h>

/*
 * Asks, by opening files: 0 or -errno.  apart: descriptor 0 is not there; the question is not to
 * lock a mutex then, and may take 32 KiB of stack.
 */
typedef int os_question_apart(void *data, bool apart);
/*
 * Asks, and where that fails for want of a descriptor (EMFILE, ENFILE) asks again, apart, where one
 * can be had.  Returns what was answered last.
 */
int os_ask(os_question_apart *ask, void *data);
static inline bool os_is_crowded(int error)
{
    return error == -EMFILE || error == -ENFILE;
}

#endif
