/*
 * The part of the frames' memory that this process can read.  -ENOMEM: no mappings left, or no
 * memory for page tables.
 */
#ifndef KSMPY_STORE_VIEW_H
#define KSMPY_STORE_VIEW_H

#include <stdbool.h>

#include "store/store.h"

/* Some frames of each node's, to begin with. */
int store_begin_to_show(struct store *store);
/* All that were ever taken, by any process: whenever the lock, or frames, were taken. */
int store_show(struct store *store);
/* What was read of the frames counts in our RSS no more; at_once: however little it is. */
void store_look_away(struct store *store, bool at_once);
/* A node whose memory cannot be asked for is no error: the frames are only placed less well. */
void store_place(const struct store *store, const int *node_ids);

#endif
