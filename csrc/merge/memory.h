/* How much memory unmerging may take. */
#ifndef KSMPY_MERGE_MEMORY_H
#define KSMPY_MERGE_MEMORY_H

#include "merge/merger.h"

/*
 * May n pages of memory be taken?  A merged page that stays so is right; a process that takes more
 * than its cgroups or the machine have left is killed.
 */
bool memory_allows(struct merger *merger, uint64_t n);
/* Where little is left, the store keeps no memory that nothing uses. */
void memory_is_not_spared(struct merger *merger);

#endif
