/* New frames go into the index. */
#ifndef KSMPY_MERGE_PUBLISH_H
#define KSMPY_MERGE_PUBLISH_H

#include "pages/pages.h"

/* Frames that one call has taken, and the part of them that is filled. */
struct batch {
    uint32_t taken, taken_end;
    uint32_t page, frame;
    uint64_t n;
    uint32_t onto[HUGE_PAGES]; /* for each page of the part, where it is to lie */
};

/* Gives filled frames their checksums. */
void publish_sums(struct pages *pages, const struct batch *batch);
/*
 * Puts frames that have their checksums into the index, before anything is mapped onto them.  This
 * is one step with the look for older frames of the same bytes, so that no two processes make both.
 * Each frame is joined for the page that it was made from; where an older one is there, the new
 * one is left and freed.  0, or -errno when none was put there.
 */
int publish_frames(struct pages *pages, struct batch *batch);

#endif
