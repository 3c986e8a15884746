/*
 * Taking back what processes held that are no more, with the lock held.
 */
#ifndef KSMPY_STORE_REAP_H
#define KSMPY_STORE_REAP_H

#include <stdint.h>

#include "store/store.h"

/*
 * Whatever its process had; it is free then.  Where that cannot be read, who has the lock next makes
 * the index anew.
 */
void reap_slot(struct store *store, unsigned slot);

#endif
