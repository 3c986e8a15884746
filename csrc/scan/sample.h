/* Chunks of which a few pages are read, instead of asking what was written. */
#ifndef KSMPY_SCAN_SAMPLE_H
#define KSMPY_SCAN_SAMPLE_H

#include "merge/merger.h"

enum chunk_plan {
    CHUNK_ASK, /* ask what was written */
    CHUNK_SETTLED, /* ask, but what was written is unchanged since the last visit */
    CHUNK_WRITE_HOT, /* do not ask: it is written all over, or may be */
};
/* How to learn what was written to the chunk of n pages that begins with page id. */
enum chunk_plan chunk_plan(const struct merger *merger, uint32_t id, uint64_t n, bool eager);
/* Notes the answer for chunk_plan(). */
void chunk_asked(const struct pages *pages, uint32_t id, uint64_t n, bool all_written);

#endif
