/*
 * Freezing without userfaultfd: writers wait in a handler of SIGSEGV.
 */
#ifndef KSMPY_FREEZE_SIGNAL_H
#define KSMPY_FREEZE_SIGNAL_H

#include <stdbool.h>

#include "freeze/ops.h"

extern const struct freezer_ops freeze_by_signal;
/*
 * From now on threads that run a handler of the program's with SIGSEGV blocked are noted, so that
 * nothing is frozen then.
 */
void signal_note_guests(void);
bool signal_is_in_use(void); /* Is there an engine that freezes in this way? */

#endif
