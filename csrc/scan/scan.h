/* One pass over the regions, in slices. */
#ifndef KSMPY_SCAN_SCAN_H
#define KSMPY_SCAN_SCAN_H

#include "scan/scanner.h"

#define SLICE_SCANNED RUN_MAX /* pages looked at before other threads get the lock */

/* false: another process keeps the store locked. *begins: a pass begins with this slice. */
bool scan_begin_slice(struct scanner *scanner, bool *begins);
/* Is called once mappings have been counted, and lost regions found. */
void scan_begin_pass(struct scanner *scanner);
/* What other processes said before the pass; false: there is more to hear before a slice. */
bool scan_hear(struct scanner *scanner);
/* Goes on to the end of a run, if there is anything to look at and that does not take long. */
void scan_slice(struct scanner *scanner, uint64_t max_pages, bool eager);
/* Are there pages that are to be exchanged before a call or a pass ends? */
bool scan_owes(const struct scanner *scanner);
/* Exchanges some of them. */
void scan_settle_slice(struct scanner *scanner);
/* Gives up those that are left: the next pass finds them again. */
void scan_drop(struct scanner *scanner);
/* The pass under way ended when its last region went, and this is the first call since. */
void scan_end_left_over(struct scanner *scanner);
/* What was done of the pass under way does not count. */
void scan_restart(struct scanner *scanner);

#endif
