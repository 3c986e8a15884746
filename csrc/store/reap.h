/*
 * Processes that are no more: they are noticed, and what they held is taken back.
 */
#ifndef KSMPY_STORE_REAP_H
#define KSMPY_STORE_REAP_H

#include "store/store.h"

/* Nothing of those whose end cannot be noticed, or while the lock is not to be had. */
void slots_reap(struct store *store);

#endif
