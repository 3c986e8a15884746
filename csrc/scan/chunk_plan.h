/* Chunks of which a few pages are read, instead of asking what was written. */
#ifndef KSMPY_SCAN_CHUNK_PLAN_H
#define KSMPY_SCAN_CHUNK_PLAN_H

#include "scan/scanner.h"

enum chunk_plan {
    CHUNK_ASK, /* ask what was written */
    CHUNK_SETTLED, /* ask, but what was written is unchanged since the last visit */
    CHUNK_LOOK, /* ask without arming, and arm it unless all of it was written */
    CHUNK_WRITE_HOT, /* do not ask: it is written all over, or may be */
    CHUNK_LEFT_ALONE, /* the same, and the last visit has found its pages like that as well */
    CHUNK_PUT_OFF, /* not yet: let its pages be, whatever is written there */
};
static inline bool is_asked(enum chunk_plan plan)
{
    return plan < CHUNK_WRITE_HOT;
}
/* How to learn what was written to the chunk of n pages that begins with page id. */
enum chunk_plan chunk_plan(struct scanner *scanner, uint32_t id, uint64_t n, bool eager);

/* What there was to learn. */
struct chunk_answer {
    bool any_written, all_written;
    bool rewritten; /* all of its pages, and those on frames have copies of their own for it */
    uint16_t again; /* pages written that were written before; 0 if all are */
    bool left_frames; /* some were on frames, and have copies of their own since */
};
/* Notes it for chunk_plan(); true: from now on the chunk is not asked about. */
bool chunk_asked(const struct scanner *scanner, uint32_t id, uint64_t n,
                 struct chunk_answer answer);
/* A pass is over. */
void chunk_plan_end_pass(struct scanner *scanner);

#endif
