/*
 * Coming and going: shared stores.  -EXDEV: it has another number of nodes; -EREMOTE: it is in
 * use in another pid namespace; -EUSERS: it is full; -EUCLEAN: it is damaged; -EPROTO: it is of another kind; -ESTALE: it was removed.
 */
#ifndef KSMPY_STORE_ATTACH_H
#define KSMPY_STORE_ATTACH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/pages.h"
#include "store/store.h"

/*
 * Attaches to the store in a file, which is laid out if nobody uses it; takes a slot.  Here and
 * below, between fork_hold() and fork_let_go(): a child must not inherit what is made meanwhile.
 * So nothing waits here: -EAGAIN where another process is in the way.
 */
int store_attach(struct store *store, int fd, int nodes, const int *node_ids);
/*
 * In a forked child: the same, for the store that its parent was attached to.  Its lease stays
 * until it parts from its parent, having joined the frames that it maps.
 */
int store_attach_again(struct store *store);
void store_part_from_parent(struct store *store);
void store_return_to_parent(struct store *store); /* it does not work out: as before */
void store_detach(struct store *store);
/* Of either kind. */
void store_destroy(struct store *store);

/* A description of its own, which holds the lock until it is closed; or -EAGAIN, or -errno. */
KSMPY_MAY_REFUSE int attach_lock(int fd, bool exclusive);
/* The process that has the lock of the store in this file, or 0. */
uint32_t store_holder(int fd);
/* With the attach lock: from now on nobody can attach. */
int store_retire(struct store *store);

#endif
