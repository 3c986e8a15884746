/* Merged pages that were written: how they are found for stats(), and given back. */
#ifndef KSMPY_MERGE_WRITTEN_H
#define KSMPY_MERGE_WRITTEN_H

#include "merge/merger.h"

/*
 * Unmerges the pages of a region, from `first` on, whose copy-on-write was broken by a write.  It
 * does so for one slice, and returns the page at which the next slice goes on.
 */
uint64_t unmerge_written(struct merger *merger, uint32_t region, uint64_t first);

#endif
