/* What a pass over the regions needs besides merging. */
#ifndef KSMPY_SCAN_SCANNER_H
#define KSMPY_SCAN_SCANNER_H

#include "merge/merger.h"
#include "merge/run.h"

#define AHEAD 16     /* pages that are read before the first of them is looked up; a power of 2 */
#define WINDOW 8192   /* pages that one question for written pages covers: 32 MiB */

/* Where a pass is, and what the page tables say of the pages there: see scan/window.h. */
struct window {
    uint32_t region; /* NO_REGION: there is none any more, and a pass that has begun is over */
    bool begun;      /* a pass is under way */
    bool heard;      /* and knows what other processes said before it */
    bool eager;                 /* the window was opened, or gone on with, by an eager call */
    uint32_t left_alone; /* a bit for each chunk of which no page is visited in this pass */
    uint32_t put_off; /* and those of them about which nothing is known: CHUNK_PUT_OFF */
    uint64_t at; /* the page that comes next, within the region */
    uint64_t first, n; /* pages [first, +n) of the region were asked about */
    uint64_t
        written[WINDOW / 64]; /* since the last pass; without tracking: is the owner's own memory */
    uint64_t zero[WINDOW / 64]; /* is the kernel's zero page */
    uint64_t copied[WINDOW / 64]; /* is an overlay's private copy, if it is an overlay */
    uint64_t untracked[WINDOW / 64]; /* is in a mapping of which the kernel notes no writes */
    uint32_t holes_first; /* pages [holes_first, +holes_n) are of these kinds (enum os_page) */
    uint64_t holes_n;
    uint8_t kinds[CHUNK];
};

/* Checksums of pages [first, +n); forgotten whenever others get the lock. */
struct ahead {
    uint32_t first, end; /* page ids; none at or after end */
    uint64_t n;
    uint64_t sums[AHEAD]; /* by the last bits of the id */
};

struct scanner {
    struct pages *pages;
    struct merger *merger;
    struct window window;
    struct ahead ahead;
    struct run run; /* that is being collected, or carried out */
    bool
        unfinished; /* a slice has carried out a part of it: nothing is collected before the rest */
    bool unreadable; /* a page of the slice could not be read */
    bool backs_off; /* the call is one with KSMPY_SCAN_BACK_OFF */
    uint64_t rewritten, rewritten_before; /* pages of chunks: in this pass, in the one before */
    uint64_t scanned, skipped;
    uint64_t lost_told; /* of the lost pages: in the result of a pass */
};

#endif
