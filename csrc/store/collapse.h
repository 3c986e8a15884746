/*
 * Huge pages for extents: an ordinary file in memory gets them where they are asked for.
 */
#ifndef KSMPY_STORE_COLLAPSE_H
#define KSMPY_STORE_COLLAPSE_H

#include <stdbool.h>
#include <stdint.h>

#include "store/store.h"

/*
 * Are new extents worth a try?  Where there was no huge page to be had the next tries are left out,
 * ever more of them.
 */
bool extents_can_be_had(struct store *store);
/* Taken extents get huge pages, if there are any. */
void extents_become_huge(struct store *store, uint32_t first, uint64_t n);

#endif
