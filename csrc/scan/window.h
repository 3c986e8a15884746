/* Where a pass is, and what the page tables say about the pages there. */
#ifndef KSMPY_SCAN_WINDOW_H
#define KSMPY_SCAN_WINDOW_H

#include "scan/scanner.h"

/* Asks the page tables about the next pages, from the scanner's place on. */
void window_open(struct scanner *scanner, const struct region *region, bool eager);
/* The pass is over, or was not begun: the next one begins with the first region. */
void window_reset(struct scanner *scanner);
/* An eager call goes on in a window that another one opened. */
void window_turn_eager(struct scanner *scanner);
/* What the window says of the pages that the scanner has not come to yet. */
struct outlook window_outlook(const struct scanner *scanner);
/* Forgets what the window says of those of n pages that are shared by now: it is out of date. */
void window_pages_merged(struct scanner *scanner, uint32_t id, uint64_t n);
/* Whether there is no memory of its own behind a page of the slice at hand. */
bool window_at_hole(struct scanner *scanner, uint32_t id);
/* A region is about to go: the pass goes on with the next one. */
void window_leave_region(struct scanner *scanner, uint32_t region);

#endif
