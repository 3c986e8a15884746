/*
 * A store of one engine's own.  To open it fails with -ENOMEM, or as memfd_create() does.
 */
#ifndef KSMPY_STORE_PRIVATE_H
#define KSMPY_STORE_PRIVATE_H

#include "store/store.h"

int store_init(struct store *store, int nodes, const int *node_ids);
void private_close(struct store *store);

#endif
