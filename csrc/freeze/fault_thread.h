/*
 * The thread that answers faults of pages that are missing although nobody froze them.  To start it
 * fails as pthread_create() does.
 */
#ifndef KSMPY_FREEZE_FAULT_THREAD_H
#define KSMPY_FREEZE_FAULT_THREAD_H

#include "freeze/ops.h"

int fault_thread_start(struct freezer *fz);
void fault_thread_stop(struct freezer *fz); /* does nothing if it does not run */

#endif
