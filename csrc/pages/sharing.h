/* Pages join frames and leave them. */
#ifndef KSMPY_PAGES_SHARING_H
#define KSMPY_PAGES_SHARING_H

#include "pages/pages.h"

void page_share(struct pages *pages, uint32_t id, uint32_t frame);
/* A SHARED page left its frame, and its memory no longer maps the store. */
void page_unshare(struct pages *pages, uint32_t id, enum page_state state);
/* Its mapping is not where it was: it may live on elsewhere, and the frame is pinned. */
void page_keep_frame(struct pages *pages, uint32_t id);
/* Does both: page_keep_frame() and page_unshare(). */
void page_abandon(struct pages *pages, uint32_t id, enum page_state state);
/* In a child: frames that it maps no more, nor can, are kept for it no longer. */
void sharing_end_lease(struct pages *pages);

#endif
