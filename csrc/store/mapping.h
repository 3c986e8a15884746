/*
 * A shared store's file in this process's memory.  -ENOMEM, and nothing is mapped.
 */
#ifndef KSMPY_STORE_MAPPING_H
#define KSMPY_STORE_MAPPING_H

#include <stdint.h>

#include "store/layout.h"
#include "store/store.h"

int store_map(struct store *store, const struct store_shape *shape);
void store_unmap(struct store *store);
/* Our own count of sharers. */
int store_map_counts(struct store *store, unsigned slot);

#endif
