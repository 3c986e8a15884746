/* New frames go into the index. */
#ifndef KSMPY_MERGE_ADOPT_H
#define KSMPY_MERGE_ADOPT_H

#include "pages/pages.h"

/* Frames that one call has taken, and a part of them that is filled. */
struct batch {
    uint32_t taken, taken_end;
    uint32_t page, frame;
    uint64_t n;
    uint32_t onto[HUGE_PAGES]; /* for each page of the part, where it is to lie */
};

/* Filled frames get their checksums. */
void adopt_sums(struct pages *pages, const struct batch *batch);
/*
 * After that, and before anything is mapped, in one step with the look for older ones, so that no two processes
 * make frames of the same bytes.  Each is joined for the page that it was made from; one that
 * nothing is mapped onto then is left, and freed.  0, or why none was.
 */
int adopt_frames(struct pages *pages, struct batch *batch);

#endif
