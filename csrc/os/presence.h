/*
 * Where memory is that was touched.  Some programs reserve terabytes, and use a little of them: whoever
 * looks for something in memory passes over what was never touched, without asking for each page.
 */
#ifndef KSMPY_OS_PRESENCE_H
#define KSMPY_OS_PRESENCE_H

#include <stdint.h>

/*
 * The first page of [start, end) that is in memory (and not in swap); end if there is none, or if
 * nothing is mapped there any more.  Whole pages.
 */
uintptr_t presence_next(uintptr_t start, uintptr_t end);

#endif
