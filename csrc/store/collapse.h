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
/*
 * Puts taken extents, MOST_EXTENTS at most, on huge pages, if there are any: this may take 20 ms, and
 * no lock is needed.  Returns a bit for each extent that lies on one now; *error becomes 0 if all do,
 * or why some do not.
 */
#define MOST_EXTENTS 64
uint64_t extents_collapse(const struct store *store, uint32_t first, uint64_t n, int *error);
/* One that has a page already: as os_collapse(). */
int extent_collapse(const struct store *store, uint32_t extent);
/* Notes what came of it. */
void extents_collapsed(struct store *store, uint32_t first, uint64_t n, uint64_t huge, int error);

#endif
