/* Runs: pages in a row that want the same thing, and are merged together. */
#ifndef KSMPY_MERGE_RUN_H
#define KSMPY_MERGE_RUN_H

#include "pages/pages.h"

/* Their longest length. */
#define RUN_MAX (4 * HUGE_PAGES)

/*
 * Pages in a row that all want the same thing; carried out together.  With n = 0 it says where the
 * last one ended, which is where its kind would go on best.
 */
struct run {
    enum { RUN_NONE, RUN_FRAME, RUN_PAGE, RUN_ALONE, RUN_EQUAL, RUN_ZERO, RUN_UNMERGE } kind;
    uint32_t page; /* id of the first */
    uint32_t target; /* RUN_FRAME: frame of the first; RUN_PAGE: its equal */
    uint64_t n;
};

/* What a pass knows of pages that it has not come to yet. */
struct outlook {
    bool eager;
    uint32_t first; /* pages [first, +n) were asked about */
    uint64_t n;
    const uint64_t *written; /* a bit for each of them */
};

static inline bool has_bit(const uint64_t *bits, uint64_t i)
{
    return bits[i / 64] >> (i % 64) & 1;
}

/*
 * Runs end where a huge page does, of those pages that new frames are made of: they are mapped as huge
 * ones then.  They contain whole huge pages of the others too, which need not lie in step with them.
 */
bool run_starts_at(uintptr_t address);
/* What decides about that if the page at this address is the next one. */
uintptr_t run_place(const struct pages *pages, const struct run *run, uintptr_t address);
/* Have these pages the same checksum and bytes, and the same tree? Live: a hint. */
bool are_equal(const struct pages *pages, uint32_t a, uint32_t b);
/* What would make the run longer, if page id wants it; or NO_INDEX. */
uint32_t run_wanted(const struct pages *pages, const struct run *run, int kind, uint32_t id);
bool run_extends(const struct pages *pages, const struct run *run, int kind, uint32_t id,
                 uint32_t target);

#endif
