/*
 * Merging: what each kind of run comes to.
 */
#include "merge/merge.h"

#include <errno.h>
#include <stdatomic.h>

#include "base/pages.h"
#include "merge/bar.h"
#include "merge/budget.h"
#include "merge/equal_neighbours.h"
#include "merge/merger.h"
#include "merge/onto_frames.h"
#include "merge/plan.h"
#include "merge/refusal.h"
#include "merge/relief.h"
#include "merge/rest.h"
#include "merge/run.h"
#include "merge/zeros.h"
#include "os/map.h"
#include "pages/pages.h"
#include "pages/records.h"

static bool on_frame(const struct pages *pages, uint32_t page, uint32_t frame)
{
    return is_shared(pages, page) && page_record(pages, page)->link == frame;
}

/* None of its pages is merged now. */
static void refuse(struct merger *merger, struct run *run, int error)
{
    count_refusal(merger, error, run->n);
    rest_shorten(merger->pages, run, 0);
}

/* Merges pages onto the frames that were made of their equals; of some none could be made. */
static void merge_onto_promoted(struct merger *merger, struct run *run)
{
    uint32_t start = run->page;
    do {
        uint64_t n = 1;
        if (is_shared(merger->pages, run->target)) {
            uint32_t frame = page_record(merger->pages, run->target)->link;
            while (n < run->promoted &&
                   on_frame(merger->pages, run->target + (uint32_t)n, frame + (uint32_t)n))
                n++;
            n = merge_onto_frames(merger, run->page, frame, n);
        }
        rest_begins_after(run, n);
    } while (run->promoted && !merger_is_awaited(merger));
    track_merged(merger, start, run->page - start);
}

static void merge_pages(struct merger *merger, struct run *run)
{
    do {
        if (run->promoted) {
            merge_onto_promoted(merger, run);
            continue;
        }
        uint64_t n = run->n;
        int error = promote(merger, run, run->target, &n);
        run->promoted = error ? 0 : n;
        if (error)
            refuse(merger, run, error);
    } while (run->n && !run->raw && !merger_is_awaited(merger));
}

/* ---- pages that others wait for ---- */

/* Makes frames of pages, their first sharers; other processes wait for these, and hear of them. */
static void promote_alone(struct merger *merger, struct run *run)
{
    do {
        uint64_t n = run->n;
        int error = promote(merger, run, run->page, &n);
        if (error) {
            refuse(merger, run, error);
            return;
        }
        rest_settle_claims(merger->pages, run->page, n);
        rest_begins_after(run, n);
    } while (run->n && !run->raw && !merger_is_awaited(merger));
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
    uint64_t n = pages_on_their_node(merger->pages, run->page, run->n);
    if (run->kind == RUN_PAGE)
        n = pages_on_their_node(merger->pages, run->target, n);
    if (n < run->n)
        count_refusal(merger, -ECANCELED, run->n - n);
    rest_shorten(merger->pages, run, n);
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

/* A run that an earlier slice has begun was admitted then. */
static bool is_admitted(struct merger *merger, const struct run *run)
{
    if (run->begun || run->kind == RUN_EQUAL ||
        budget_allows(&merger->budget, run->n, run->kind == RUN_PAGE ? 4 : 2))
        return true;
    budget_refuse(&merger->budget, run->page, run->n, run->n);
    return false;
}

static void merge_frames(struct merger *merger, struct run *run)
{
    uint64_t n = merge_onto_frames(merger, run->page, run->target, run->n);
    track_merged(merger, run->page, n);
    rest_begins_after(run, n);
}

static void merge_onto(struct merger *merger, struct run *run, const struct outlook *outlook)
{
    leave_moved_pages(merger, run);
    if (!run->n)
        return;
    if (!is_admitted(merger, run))
        refuse(merger, run, -EDQUOT);
    else if (run->kind == RUN_EQUAL)
        merge_equal(merger, run, outlook);
    else if (run->kind == RUN_FRAME)
        merge_frames(merger, run);
    else if (run->kind == RUN_ALONE)
        promote_alone(merger, run);
    else
        merge_pages(merger, run);
}

/* Takes written pages out of their run; if somebody waits, those of one huge page's place only. */
static void unmerge(struct merger *merger, struct run *run)
{
    uint64_t place = pages_to_huge(page_address(merger->pages, run->page));
    uint64_t n = atomic_load(merger->awaited) ? least(run->n, place) : run->n;
    if (!relief_unmerge_run(merger, run->page, n))
        count_refusal(merger, -EDQUOT, n);
    rest_begins_after(run, n);
}

static bool merge_some(struct merger *merger, struct run *run, const struct outlook *outlook)
{
    if (run->kind == RUN_UNMERGE) {
        unmerge(merger, run);
    } else if (merging_is_barred(merger)) {
        refuse(merger, run, -EBUSY);
    } else if (run->kind == RUN_ZERO) {
        rest_begins_after(run, merge_zeros(merger, run->page, run->n));
    } else {
        tell_core_dumps();
        if (!run->begun && plan_run(merger, run)) {
            rest_begins_after(run, run->n);
            return false;
        }
        merge_onto(merger, run, outlook);
    }
    return true;
}

bool merge_run(struct merger *merger, struct run *run, const struct outlook *outlook)
{
    bool merged = merge_some(merger, run, outlook);
    run->begun = run->n != 0;
    if (!run->n)
        rest_give_frames_back(&merger->pages->store, run);
    return merged;
}
