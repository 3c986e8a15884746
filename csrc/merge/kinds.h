/* What kind of memory lies behind pages. */
#ifndef KSMPY_MERGE_KINDS_H
#define KSMPY_MERGE_KINDS_H

#include "merge/merger.h"

/*
 * Of what kind each page's memory is (enum os_page).  Where the kernel does not tell whether there
 * is any, memory that we mapped is faulted in to find out, and the owner's is taken to be swapped.
 */
int page_kinds(const struct merger *merger, uint32_t id, uint64_t n, uint8_t *kinds);

#endif
