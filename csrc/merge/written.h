/* Merged pages that were written. */
#ifndef KSMPY_MERGE_WRITTEN_H
#define KSMPY_MERGE_WRITTEN_H

#include "merge/merger.h"

/*
 * Only the pages whose copy-on-write was broken by a write, from that page of the region on, for a
 * slice; where it goes on.
 */
uint64_t unmerge_written(struct merger *merger, uint32_t region, uint64_t first);

#endif
