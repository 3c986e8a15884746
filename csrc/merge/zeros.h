/* Pages of zeros onto the kernel's zero page. */
#ifndef KSMPY_MERGE_ZEROS_H
#define KSMPY_MERGE_ZEROS_H

#include "merge/merger.h"

/*
 * Puts n pages, which were all zeros when they were looked at, onto the zero page.  Returns how many
 * were dealt with: fewer if somebody waits, but never none.
 */
uint64_t merge_zeros(struct merger *merger, uint32_t page, uint64_t n);

#endif
