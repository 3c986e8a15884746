/* Carrying runs out. */
#ifndef KSMPY_MERGE_MERGE_H
#define KSMPY_MERGE_MERGE_H

#include "merge/merger.h"
#include "merge/run.h"

/*
 * Carries a run out, up to its end unless somebody waits: *run becomes what is left of it.  What
 * became of the pages is in their records. false: they are planned (merge/plan.h).
 */
bool merge_run(struct merger *merger, struct run *run, const struct outlook *outlook);

#endif
