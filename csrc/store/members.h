/*
 * Who uses a store, and what becomes of the dead and of forked children.
 */
#ifndef KSMPY_STORE_MEMBERS_H
#define KSMPY_STORE_MEMBERS_H

#include <stdbool.h>

#include "store/store.h"

/* Takes back what processes held that are no more. */
void slots_reap(struct store *store);
/* Around fork(): the child will hold a lease on all frames there are. */
void store_fork_prepare(struct store *store);
void store_fork_parent(struct store *store);
/* In a forked child: nothing of the store is mapped here but overlays. */
void store_abandon(struct store *store);
void store_end_lease(struct store *store); /* nor are those */

#endif
