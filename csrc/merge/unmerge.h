/* Unmerging: overlays become anonymous memory again. */
#ifndef KSMPY_MERGE_UNMERGE_H
#define KSMPY_MERGE_UNMERGE_H

#include "merge/merger.h"

/* Pages of one region whose memory is an overlay become anonymous memory; 0 or the first error. */
int unmerge_pages(struct merger *merger, uint32_t region, uint64_t first, uint64_t n,
                  enum page_state state);
/* The records follow what owners have given back (MADV_DONTNEED). */
void follow_removals(struct merger *merger);
#define UNMERGE_MAPPINGS 2 /* that unmerging pages in a row takes: they were in the middle of one */
/* Pages of a run that were written; -EDQUOT: that would take more mappings than there may be. */
int unmerge_run(struct merger *merger, uint32_t page, uint64_t n);

/*
 * A region's pages come back, in slices.  In between others have the lock, and find some pages of
 * the region NEW and their owner's own, and the others as they were: whatever they do to either is
 * right.  A pass leaves the region alone meanwhile.  Its candidates may still be merged as the
 * equal of another page, but only those that come later in the region.
 */
struct unmerging {
    uint32_t region;
    uint64_t serial; /* the region's: its number may be another's after a slice */
    uint64_t page; /* of the region: those before it are dealt with */
    bool discard; /* the memory is about to be freed: its bytes are not kept */
    bool no_memory; /* was found for a piece: the others stay merged, too */
    bool waits; /* for direct I/O to end, for a millisecond */
    int io_tries; /* how often it still may */
    int vain_tries; /* how often that page was something else than at the look before, in a row */
    int failure; /* the first one, or 0 */
    bool vanished; /* what could not be given back was no overlay any more */
    int looks; /* at all of it */
};
void unmerging_begin(struct pages *pages, struct unmerging *work, uint32_t region, bool discard);
/* One slice; false: that was the last one. */
bool unmerging_step(struct merger *merger, struct unmerging *work);
/*
 * After the last one.  true: begin anew, as what failed may have failed because its owner has
 * unmapped it, or put something else there, since it was looked at.
 */
bool unmerging_again(struct merger *merger, struct unmerging *work);
void unmerging_end(struct pages *pages, const struct unmerging *work);

#endif
