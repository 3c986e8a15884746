/* New frames go into the index. */
#ifndef KSMPY_MERGE_PUBLISH_H
#define KSMPY_MERGE_PUBLISH_H

#include "pages/pages.h"

/* Frames that one call has taken, and a part of them that is filled. */
struct batch {
    uint32_t taken, taken_end;
    uint32_t page, frame;
    uint64_t n;
    uint32_t onto[HUGE_PAGES]; /* for each page of the part, where it is to lie */
};

/* Filled frames get their checksums. */
void publish_sums(struct pages *pages, const struct batch *batch);
/*
 * After that, and before anything is mapped, in one step with the look for older ones, so that no two processes
 * make frames of the same bytes.  Each is joined for the page that it was made from; one that
 * nothing is mapped onto then is left, and freed.  0, or why none was.
 */
int publish_frames(struct pages *pages, struct batch *batch);

#endif
