/* Pages onto frames, old and new. */
#ifndef KSMPY_MERGE_ONTO_FRAMES_H
#define KSMPY_MERGE_ONTO_FRAMES_H

#include "merge/merger.h"
#include "merge/run.h"

/*
 * Puts n pages onto frames that follow each other, and faults them in for their readers.  Returns
 * how many were dealt with: fewer if somebody waits, but never none.
 */
uint64_t merge_onto_frames(struct merger *merger, uint32_t page, uint32_t frame, uint64_t n);
/* Notes that n pages were put onto frames, each of which may be a mapping by itself. */
void merged_scattered(struct merger *merger, uint32_t page, uint64_t n);
/*
 * Makes frames of at most *n pages, which become their first sharers.  It makes those of one huge
 * page at a time, so that the bytes are still in the processor's caches when they are compared.  *n
 * becomes how many pages were dealt with; 0, or -errno when there were none.  If somebody waits it
 * ends between two huge pages, and the run keeps the frames that were taken for the others; if
 * these are raw (run->raw), before the first page.
 */
int promote(struct merger *merger, struct run *run, uint32_t page, uint64_t *n);
/* Does the same where frames in a row matter more than huge pages. */
int promote_row(struct merger *merger, struct run *run, uint32_t page, uint64_t *n);
/* From now on the engine hears of writes to these pages, which were just merged. */
void track_merged(struct merger *merger, uint32_t page, uint64_t n);

#endif
