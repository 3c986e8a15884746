/*
 * Memory of extents that no frame uses, see store/extents.h.
 */
#ifndef KSMPY_STORE_SPARE_H
#define KSMPY_STORE_SPARE_H

#include <stdbool.h>
#include <stdint.h>

#include "store/store.h"

/*
 * Sees to the frames that wait for store_flush(): those on larger folios become spare, or end with
 * their extent.  Returns how many of the first ones in the list are pages of their own, to be punched;
 * others that are left behind them have to wait, since the lock was not to be had.
 */
uint64_t spare_dead_frames(struct store *store);
/*
 * Lets extents go, those with many spare frames first, until `frames` are spare at the most: as far as
 * nobody has a reference to them, and for a while.
 */
void spare_at_most(struct store *store, uint64_t frames);

#endif
