/* Pages onto frames, old and new. */
#ifndef KSMPY_MERGE_ONTO_H
#define KSMPY_MERGE_ONTO_H

#include "merge/merger.h"

/* Pages onto frames that follow each other; readers find them mapped. */
void merge_onto_frames(struct merger *merger, uint32_t page, uint32_t frame, uint64_t n);
/* Pages were exchanged, of which each may be a mapping by itself. */
void merged_scattered(struct merger *merger, uint32_t page, uint64_t n);
/*
 * Makes frames of the pages, which become their first sharers: a huge page at a time, so that it
 * is still in the caches when it is compared.  In *n how many pages were dealt with; 0, or why
 * there were none.
 */
int promote(struct merger *merger, uint32_t page, uint64_t *n);
/* The same where they are to be frames in a row, rather than on huge pages. */
int promote_row(struct merger *merger, uint32_t page, uint64_t *n);
/* Pages that were just merged: the engine hears of their writers. */
void track_merged(struct merger *merger, uint32_t page, uint64_t n);

#endif
