/* Checksums of the pages that come next. */
#ifndef KSMPY_SCAN_AHEAD_H
#define KSMPY_SCAN_AHEAD_H

#include "scan/scanner.h"

#define ALWAYS_VISITED 3 /* visits of a page before smart_scan passes it over for the first time */
#define UNREADABLE                                                                                 \
    UINT64_MAX /* instead of a checksum: its owner has unmapped or protected the page */

/* Whether a page in that state, which was not written since it came to it, has to be looked up. */
bool is_to_be_looked_up(const struct budget *budget, enum page_state state);
/* The page's checksum, or UNREADABLE. The pages after it are hashed with it, and remembered. */
uint64_t sum_of(struct scanner *scanner, uint32_t id, bool eager);

#endif
