/* What forbids merging for a slice of a pass, and that written pages come back. */
#ifndef KSMPY_MERGE_BAR_H
#define KSMPY_MERGE_BAR_H

#include "merge/merger.h"

/* Has the program left the engine's descriptors alone? */
bool merger_has_files(const struct merger *merger);
void bar_ask_again(struct merger *merger); /* another slice begins */
/* When it is first asked in a slice it is found out, for all of it. */
bool merging_is_barred(struct merger *merger);
/* Are merged pages to stay where they are, unless their owner insists? */
bool coming_back_is_barred(struct merger *merger);

#endif
