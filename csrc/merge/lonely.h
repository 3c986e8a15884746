/* In a full store, a frame with a single sharer saves nothing, and its page goes back. */
#ifndef KSMPY_MERGE_LONELY_H
#define KSMPY_MERGE_LONELY_H

#include "merge/merger.h"

/* Is called at the start of a pass. */
void leave_lonely_frames(struct merger *merger);

#endif
