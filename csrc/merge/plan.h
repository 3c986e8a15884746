/*
 * Pages in no order: short runs are not carried out one by one, but planned.
 *
 *   found      page 70 equals page 3, page 71 page 9, page 72 page 5 ...
 *   pairs      frames are made for many of them at once, in a row:   70, 71, 72 -> F, F+1, F+2
 *   planned    all six have joined their frames:    3 -> F   5 -> F+2   9 -> F+1   70 -> F ...
 *   exchanged  in the order of their addresses, neighbours in one piece
 *
 * So freezing, comparing and thawing are paid by piece, and the first of each pair become one
 * mapping.  A planned page is SEEN, and its link says which frame it has joined.  If it is
 * written, unregistered or unmerged meanwhile it is in another state, and its entry is void: then
 * nothing is exchanged, and the page leaves the frame that it had joined.  Pairs wait within a
 * slice, the plan within a call.
 */
#ifndef KSMPY_MERGE_PLAN_H
#define KSMPY_MERGE_PLAN_H

#include "merge/merger.h"
#include "merge/run.h"

#define SHORT_RUN 32 /* from this length on runs are carried out at once */

/* At the start of a slice: may runs be planned in it? Where mappings are scarce none are. */
void plan_begin_slice(struct merger *merger);
/* false: it is to be carried out at once. */
bool plan_run(struct merger *merger, const struct run *run);
/*
 * Does a pair with this checksum wait for its frame?  false is certain; true is not, as only a bit of
 * each checksum's hash is kept.
 */
bool plan_has_pair_of(const struct plan *plan, uint64_t sum);
/* Pairs get their frames. */
void plan_make_frames(struct merger *merger);
/* Is it time to carry it out, as it holds as much as it may? */
bool plan_is_full(const struct merger *merger);
/*
 * The next pages that lie side by side are exchanged: *n of them, maybe none, from *page on. false:
 * there is nothing planned any more.
 */
bool plan_step(struct merger *merger, uint32_t *page, uint64_t *n);
/* Nothing is planned any more; the pages are looked up again. */
void plan_drop(struct merger *merger);
/* The same in a forked child, whose parent has joined the frames. */
void plan_forget(struct merger *merger);
static inline bool plan_is_empty(const struct plan *plan)
{
    return plan->done == plan->n && !plan->pairs_n;
}
/* How many frames have a sharer that no page has become yet. */
static inline uint64_t plan_joined(const struct plan *plan)
{
    return plan->n - plan->done;
}
void plan_destroy(struct plan *plan);

#endif
