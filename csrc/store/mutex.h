/*
 * The mutex of a shared store, which survives whoever dies with it.
 */
#ifndef KSMPY_STORE_MUTEX_H
#define KSMPY_STORE_MUTEX_H

#include <stdint.h>

#include "base/pages.h"
#include "store/layout.h"

/*
 * Tried for so long; what that took goes to *waited.  0: it is ours; should its owner have died with
 * it, the index is known to be half changed from now on.  -EAGAIN: another has it; -EUCLEAN: it is
 * none, somebody wrote over it.
 */
KSMPY_MAY_REFUSE int mutex_take(struct store_head *head, uint64_t limit_ns, uint64_t *waited);
void mutex_give(struct store_head *head);

#endif
