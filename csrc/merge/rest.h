/*
 * What is left of a run when its slice ends in the middle of it, because somebody waits for the
 * engine's lock.  The next slice goes on there.  In between its pages may be written, unmerged or
 * released: those with which a run cannot go on are left for the next pass.
 */
#ifndef KSMPY_MERGE_REST_H
#define KSMPY_MERGE_REST_H

#include "merge/merger.h"
#include "merge/run.h"

/* The first n pages of the run are dealt with. */
void rest_begins_after(struct run *run, uint64_t n);
/* Leaves all but the first n pages of the run for the next pass. */
void rest_shorten(struct pages *pages, struct run *run, uint64_t n);
/* Shortens the run to those pages that are still as they were when they were collected. */
void rest_revise(struct pages *pages, struct run *run);
/* Ends this process's claims on the checksums of pages, for which others wait: see announce.h. */
void rest_settle_claims(struct pages *pages, uint32_t page, uint64_t n);
/* Gives the frames back that were taken for the run and not filled. */
void rest_give_frames_back(struct store *store, struct run *run);

#endif
