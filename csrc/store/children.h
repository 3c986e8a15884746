/*
 * Forked children of a process on a store.  A lease (os/lease.h) tells the others as long as
 * the child lives, and so long nobody frees the frames that it may map.
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
/* In such a child, when no overlay is mapped any more: nothing keeps their frames from then on. */
void store_end_lease(struct store *store);

#endif
