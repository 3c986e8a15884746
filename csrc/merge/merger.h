/* What merging and unmerging need besides the pages. */
#ifndef KSMPY_MERGE_MERGER_H
#define KSMPY_MERGE_MERGER_H

#include <stdatomic.h>

#include "freeze/freezer.h"
#include "os/clock.h"
#include "os/memory.h"
#include "pages/pages.h"

/* The mapping budget: see merge/budget.h. */
struct budget {
    struct pages *pages;
    uint64_t mappings, counted, limit; /* estimate; at the last count; allowed */
    uint64_t regions_limit; /* up to which regions are taken: half of the kernel's limit at least */
    uint64_t counts; /* there were */
    uint64_t count_again_ns; /* when a count would be worth its time again */
    uint64_t outdated_ns; /* when the last count says nothing about the program any more */
    uint64_t gone_since_count; /* regions */
    uint64_t refused; /* pages of the longest run that had none since they were last asked for */
    bool asks_again; /* this pass looks REFUSED pages up */
    uint64_t cramped_in; /* 1 + full_scans of the pass in which no overlay could make room */
    uint64_t calm_since; /* full_scans when the last region came, or mappings were last scarce */
};

/* Something that is asked now and then. */
struct question {
    bool answer; /* when it was asked last */
    uint64_t again_ns; /* when it is to be asked again */
};

/* What forbids merging: see merge/bar.h. */
struct bar {
    bool known, barred; /* not known when a slice begins */
    bool minds_devices; /* nobody has asked for a way of freezing that sees none of their writes */
    struct question device_files, mapped_rings;
};

/* Memory that may be taken: see merge/memory.h. */
struct allowance {
    struct os_memory memory;
    uint64_t pages; /* that are left of the last answer */
    uint64_t asked_ms;
};

#define PAIRS 512 /* that get their frames together */
#define PAIR_SUMS 65536 /* bits */

/* Pages that are to be exchanged, and pairs that are to get a frame: see merge/plan.h. */
struct planned {
    uint32_t page, frame;
};
struct equals {
    uint32_t page, equal;
};
struct plan {
    bool open; /* short runs are planned in this slice */
    bool full;
    bool sorted; /* by page: it is being carried out */
    struct arena list; /* struct planned */
    uint64_t n, done; /* entries, of which so many were dealt with */
    uint64_t mappings; /* that they will take, more or less */
    uint64_t pairs_n;
    struct equals pairs[PAIRS];
    uint64_t sums[PAIR_SUMS / 64]; /* has a bit for the checksum of each pair */
};

struct merger {
    struct pages *pages;
    struct plan plan;
    struct freezer fz;
    struct budget budget;
    struct bar bar;
    struct allowance allowance;
    uint64_t busy, no_budget, no_memory, differed; /* pages that were refused */
    struct ksmpy_scan_result *result; /* of the call under way */
    const _Atomic int *awaited; /* how many wait for the engine's lock, beside a pass */
    uint64_t slice_began_ns; /* the one of a pass or an unmerge that is under way */
};

/*
 * How long a slice of a pass or an unmerge works at least, in ns, with somebody waiting for it: to hand the lock
 * over and to take a run up again takes a tenth of that.
 */
#define LEAST_SLICE_NS 200000

/* Is such a slice to end at the next step, since somebody waits? */
static inline bool merger_is_awaited(const struct merger *merger)
{
    return atomic_load_explicit(merger->awaited, memory_order_relaxed) &&
           os_now_ns() - merger->slice_began_ns >= LEAST_SLICE_NS;
}

#endif
