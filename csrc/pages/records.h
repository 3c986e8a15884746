/* Page records, and the counters that follow from their states: the only writer of page states. */
#ifndef KSMPY_PAGES_RECORDS_H
#define KSMPY_PAGES_RECORDS_H

#include "pages/pages.h"

int node_index(const struct pages *pages, int node_id); /* or -1 */
/* How many of the pages, from the first one on, still lie where their records say. */
uint64_t pages_on_their_node(const struct pages *pages, uint32_t id, uint64_t n);
/* How many of n pages from `id` on are like it: all in that state, or all in others. */
uint64_t pages_alike(const struct pages *pages, uint32_t id, uint64_t n, enum page_state state);
void page_become(struct pages *pages, uint32_t id, enum page_state state, uint32_t link);
/* Whether its bytes are all zeros: a hint, as its owner may be writing. */
bool page_is_zero(const struct pages *pages, uint32_t id);
/* From now on every pass looks which of these overlays are private copies. */
void mark_untracked(struct pages *pages, uint32_t id, uint64_t n);

#endif
