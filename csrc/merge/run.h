/* Runs: pages in a row that want the same thing, and are merged together. */
#ifndef KSMPY_MERGE_RUN_H
#define KSMPY_MERGE_RUN_H

#include "pages/pages.h"

#define RUN_MAX (4 * HUGE_PAGES) /* pages: 8 MiB */

/*
 * Pages in a row that all want the same thing, and are carried out together.  A run without pages
 * (n = 0) says where the last one ended, since its kind goes on best from there.
 */
struct run {
    enum { RUN_NONE, RUN_FRAME, RUN_PAGE, RUN_ALONE, RUN_EQUAL, RUN_ZERO, RUN_UNMERGE } kind;
    uint32_t page; /* id of the first */
    uint32_t target; /* RUN_FRAME: frame of the first; RUN_PAGE: its equal */
    uint64_t n;

    /* while it is being carried out, which may take several slices: see merge/rest.h */
    bool begun;
    uint64_t promoted; /* RUN_PAGE: frames were made of so many of the first equals */
    uint32_t taken, unfilled,
        taken_end; /* frames taken for it; from which on they are not filled */
    bool raw; /* these are to be put on huge pages, with no lock in hand, before it goes on */
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
 * A run of which new frames are made ends where a huge page of its memory ends, so that whole huge
 * pages become whole extents.  The pages that are equal to them need not lie in step with them.
 */
bool run_starts_at(uintptr_t address);
/* The address that decides about this when the page at `address` comes next. */
uintptr_t run_place(const struct pages *pages, const struct run *run, uintptr_t address);
/*
 * Whether two pages have the same checksum, bytes and tree: a hint, as their owners may be writing.
 */
bool are_equal(const struct pages *pages, uint32_t a, uint32_t b);
/* The target with which page id would make the run longer; NO_INDEX: no target does. */
uint32_t run_wanted(const struct pages *pages, const struct run *run, int kind, uint32_t id);
bool run_extends(const struct pages *pages, const struct run *run, int kind, uint32_t id,
                 uint32_t target);

#endif
