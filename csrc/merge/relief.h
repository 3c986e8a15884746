/* Making room in the mapping budget. */
#ifndef KSMPY_MERGE_RELIEF_H
#define KSMPY_MERGE_RELIEF_H

#include "merge/merger.h"

/* Takes the shortest overlays apart for so many mappings, if need be. */
bool relief_make_room(struct merger *merger, uint64_t more);
/* unmerge_run(), with room made for it; false: there is none, and it stays merged. */
bool relief_unmerge_run(struct merger *merger, uint32_t page, uint64_t n);

#endif
