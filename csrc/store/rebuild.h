/*
 * Making the index anew, when the lock's owner has died in the middle of anything.
 */
#ifndef KSMPY_STORE_REBUILD_H
#define KSMPY_STORE_REBUILD_H

#include "store/store.h"

/* All but the frames. -EBADF: the program has closed the files. */
int store_rebuild(struct store *store);

#endif
