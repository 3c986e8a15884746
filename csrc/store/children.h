/*
 * Forked children of a process on a store.
 */
#ifndef KSMPY_STORE_CHILDREN_H
#define KSMPY_STORE_CHILDREN_H

#include <stdbool.h>

#include "store/store.h"

/* Around fork(): the child will hold a lease on all frames there are. */
void store_fork_prepare(struct store *store);
void store_fork_parent(struct store *store);
/* In a forked child: nothing of the store is mapped here but overlays. */
void store_abandon(struct store *store);
void store_end_lease(struct store *store); /* nor are those */

#endif
