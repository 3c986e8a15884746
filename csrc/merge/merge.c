/*
 * Merging: what each kind of run comes to.
 */
#include "merge/merge.h"

#include <errno.h>
#include <stdatomic.h>

#include "merge/bar.h"
#include "merge/budget.h"
#include "merge/merger.h"
#include "merge/onto.h"
#include "merge/plan.h"
#include "merge/refusal.h"
#include "merge/relief.h"
#include "merge/run.h"
#include "merge/stretch.h"
#include "merge/zeros.h"
#include "os/map.h"
#include "pages/pages.h"
#include "pages/records.h"
#include "store/announce.h"
#include "store/lock.h"
#include "store/store.h"

static bool on_frame(const struct pages *pages, uint32_t page, uint32_t frame)
{
    return is_shared(pages, page) && page_record(pages, page)->link == frame;
}

/* Merges pages onto the frames that were made of their equals; of some none could be made. */
static void merge_onto_promoted(struct merger *merger, const struct run *run)
{
    for (uint64_t i = 0, n; i < run->n; i += n) {
        uint32_t page = run->page + (uint32_t)i, target = run->target + (uint32_t)i;
        n = 1;
        if (!is_shared(merger->pages, target))
            continue;
        uint32_t frame = page_record(merger->pages, target)->link;
        while (i + n < run->n && on_frame(merger->pages, target + (uint32_t)n, frame + (uint32_t)n))
            n++;
        merge_onto_frames(merger, page, frame, n);
    }
    track_merged(merger, run->page, run->n);
}

static void merge_pages(struct merger *merger, struct run run)
{
    while (run.n) {
        struct run part = run;
        int error = promote(merger, run.target, &part.n);
        if (error) {
            count_refusal(merger, error, run.n);
            return;
        }
        merge_onto_promoted(merger, &part);
        run.page += (uint32_t)part.n;
        run.target += (uint32_t)part.n;
        run.n -= part.n;
    }
}

/* ---- pages that others wait for ---- */

/* Makes frames of pages, their first sharers; other processes wait for these, and hear of them. */
static void promote_alone(struct merger *merger, struct run run)
{
    for (uint64_t n; run.n; run.page += (uint32_t)n, run.n -= n) {
        n = run.n;
        int error = promote(merger, run.page, &n);
        if (!error)
            continue;
        count_refusal(merger, error, run.n);
        return;
    }
}

/*
 * Ends this process's claims on the pages' checksums, whether the pages became frames or not: other
 * processes must not go on waiting for them.
 */
static void settle_claims(struct pages *pages, const struct run *run)
{
    struct store *store = &pages->store;
    bool locked = store_lock(store);
    for (uint64_t i = 0; i < run->n; i++) {
        const struct page *page = page_record(pages, run->page + (uint32_t)i);
        announcement_settle(store, tree_of(pages, page_node(page)), page_sum(page),
                            page_state(page) == PAGE_SHARED);
    }
    if (locked)
        store_unlock(store);
}

/*
 * Cuts a run where a page has moved to another node since it was looked up.  Such a page belongs in
 * another tree, where the next pass looks for it.
 */
static void leave_moved_pages(struct merger *merger, struct run *run)
{
    if (merger->pages->knobs[KSMPY_KNOB_MERGE_ACROSS_NODES] || merger->pages->nodes == 1 ||
        merger->pages->injected_nodes)
        return;
    uint64_t wanted = run->n;
    run->n = pages_on_their_node(merger->pages, run->page, run->n);
    if (run->kind == RUN_PAGE)
        run->n = pages_on_their_node(merger->pages, run->target, run->n);
    if (run->n < wanted)
        count_refusal(merger, -ECANCELED, wanted - run->n);
}

/*
 * Has merged pages included in core dumps.  This is done once in a process: if the program changes
 * the setting afterwards, that is its own choice.
 */
static void tell_core_dumps(void)
{
    static atomic_flag told = ATOMIC_FLAG_INIT;
    if (!atomic_flag_test_and_set(&told))
        os_dump_overlays();
}

static void merge_onto(struct merger *merger, struct run run, const struct outlook *outlook)
{
    leave_moved_pages(merger, &run);
    if (!run.n)
        return;
    if (run.kind == RUN_EQUAL) {
        merge_equal(merger, run, outlook);
    } else if (!budget_allows(&merger->budget, run.n, run.kind == RUN_PAGE ? 4 : 2)) {
        budget_refuse(&merger->budget, run.page, run.n, run.n);
        count_refusal(merger, -EDQUOT, run.n);
    } else if (run.kind == RUN_FRAME) {
        merge_onto_frames(merger, run.page, run.target, run.n);
        track_merged(merger, run.page, run.n);
    } else if (run.kind == RUN_ALONE) {
        promote_alone(merger, run);
    } else {
        merge_pages(merger, run);
    }
}

bool merge_run(struct merger *merger, struct run run, const struct outlook *outlook)
{
    if (run.kind == RUN_UNMERGE) {
        if (!relief_unmerge_run(merger, run.page, run.n))
            count_refusal(merger, -EDQUOT, run.n);
    } else if (merging_is_barred(merger)) {
        count_refusal(merger, -EBUSY, run.n);
    } else if (run.kind == RUN_ZERO) {
        merge_zeros(merger, run.page, run.n);
    } else {
        tell_core_dumps();
        if (plan_run(merger, &run))
            return false;
        merge_onto(merger, run, outlook);
    }
    if (run.kind == RUN_ALONE)
        settle_claims(merger->pages, &run);
    return true;
}
