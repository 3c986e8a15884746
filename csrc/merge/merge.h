/* Carrying runs out. */
#ifndef KSMPY_MERGE_MERGE_H
#define KSMPY_MERGE_MERGE_H

#include "merge/merger.h"
#include "merge/run.h"

/* What became of the pages is in their records. false: they are planned (merge/plan.h). */
bool merge_run(struct merger *merger, struct run run, const struct outlook *outlook);

#endif
