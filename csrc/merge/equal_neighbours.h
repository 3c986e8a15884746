/* Neighbours that are equal to each other. */
#ifndef KSMPY_MERGE_EQUAL_NEIGHBOURS_H
#define KSMPY_MERGE_EQUAL_NEIGHBOURS_H

#include "merge/merger.h"
#include "merge/run.h"

/* Merges a run of pages that all have the same bytes, or the first ones of it if somebody waits. */
void merge_equal(struct merger *merger, struct run *run, const struct outlook *outlook);

#endif
