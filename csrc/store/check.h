/*
 * Is a store sound?  Says what does not fit, for tests, debug builds and newcomers.
 */
#ifndef KSMPY_STORE_CHECK_H
#define KSMPY_STORE_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/report.h"
#include "store/store.h"

/* Of a store with its lock held, before anything in it is believed: 0 or -EUCLEAN. */
int store_check(const struct store *store);
/* The same, to a report, and the frames' bytes as well. *sharers: of all frames. */
void store_report(struct store *store, struct report *report, uint64_t *sharers);

#endif
