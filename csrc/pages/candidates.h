/* The unstable trees, and the pages that wait for an equal one. */
#ifndef KSMPY_PAGES_CANDIDATES_H
#define KSMPY_PAGES_CANDIDATES_H

#include "pages/pages.h"

int candidates_init(struct pages *pages);
void candidates_destroy(struct pages *pages);
uint64_t candidates_metadata_bytes(const struct pages *pages);
/*
 * Makes room for the candidates of n pages; it fails without harm.  They move there bit by bit, and
 * are found meanwhile wherever they are: candidates_move_some() is to be called until it says that
 * there is nothing to move, before this and after it.
 */
int candidates_grow(struct pages *pages, uint64_t n);
bool candidates_move_some(struct pages *pages);
/*
 * The first page of the bucket with that number, of either table; false: there is no such bucket.
 */
bool candidates_bucket(const struct pages *pages, uint64_t number, uint32_t *id);
/*
 * The candidate with the bytes of page id, or NO_PAGE. The preferred one is taken if it has their
 * checksum.
 */
uint32_t candidate_find(struct pages *pages, uint32_t id, uint32_t preferred);
/* A frame came, or has room again: candidates of its checksum are looked up in the next pass. */
void candidates_wake(struct pages *pages, int tree, uint64_t sum);
void candidates_prefetch(const struct pages *pages, uint64_t sum);
/* The page at that place of its bucket, some time after the one before it, or the bucket. */
void candidates_prefetch_page(const struct pages *pages, uint64_t sum, int place);
void candidate_add(struct pages *pages, uint32_t id);
/* Takes a page out of the candidates, if it is one of them; its state is SEEN then. */
void page_withdraw(struct pages *pages, uint32_t id);
/* A page that lies elsewhere now belongs in another tree. */
void page_move_to_node(struct pages *pages, uint32_t id, unsigned node);

#endif
