/* In a full store, frames that nobody else has joined are left. */
#ifndef KSMPY_MERGE_LONELY_H
#define KSMPY_MERGE_LONELY_H

#include "merge/merger.h"

/* At the start of a pass. */
void leave_lonely_frames(struct merger *merger);

#endif
