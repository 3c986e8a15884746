/* Regions whose memory was taken away behind our back. */
#ifndef KSMPY_PAGES_LOST_H
#define KSMPY_PAGES_LOST_H

#include "pages/pages.h"

/* Its memory is not, or not all, what we know: it is left alone from now on. */
void lose_region(struct pages *pages, uint32_t region);
/* A slice of the regions in the order of addresses, from *at on; false: that was the last one. */
bool find_lost_some(struct pages *pages, uintptr_t *at);
void check_lost_region(struct pages *pages, uint32_t region); /* this one */

#endif
