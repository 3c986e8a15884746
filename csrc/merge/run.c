/* Runs: which pages go together in one. */
#include "merge/run.h"

#include "base/pages.h"
#include "os/arena.h"
#include "os/guard.h"
#include "pages/pages.h"

static bool same_region(const struct pages *pages, uint32_t a, uint32_t b)
{
    return region_of(pages, a) == region_of(pages, b);
}

/* The new frames of a run come from one node. */
static bool same_tree(const struct pages *pages, uint32_t a, uint32_t b)
{
    return tree_of(pages, page_node(page_record(pages, a))) ==
           tree_of(pages, page_node(page_record(pages, b)));
}

/* The same checksum and tree. */
static bool seem_equal(const struct pages *pages, uint32_t a, uint32_t b)
{
    return page_sum(page_record(pages, a)) == page_sum(page_record(pages, b)) &&
           same_tree(pages, a, b);
}

bool are_equal(const struct pages *pages, uint32_t a, uint32_t b)
{
    return seem_equal(pages, a, b) && compare_live((const void *)page_address(pages, a),
                                                   (const void *)page_address(pages, b)) == 0;
}

bool run_starts_at(uintptr_t address)
{
    return address % bytes_of(RUN_MAX) == 0;
}

uintptr_t run_place(const struct pages *pages, const struct run *run, uintptr_t address)
{
    bool has_target = run->n && run->kind == RUN_PAGE;
    return has_target ? page_address(pages, run->target) + bytes_of(run->n) : address;
}

static bool follows(const struct pages *pages, const struct run *run, int kind, uint32_t id)
{
    return (int)run->kind == kind && id == run->page + run->n &&
           (!run->n || (same_region(pages, id, run->page) &&
                        !run_starts_at(run_place(pages, run, page_address(pages, id)))));
}

uint32_t run_wanted(const struct pages *pages, const struct run *run, int kind, uint32_t id)
{
    return follows(pages, run, kind, id) ? run->target + (uint32_t)run->n : NO_INDEX;
}

bool run_extends(const struct pages *pages, const struct run *run, int kind, uint32_t id,
                 uint32_t target)
{
    if (!follows(pages, run, kind, id))
        return false;
    if (kind == RUN_ZERO || kind == RUN_UNMERGE)
        return true;
    if (kind == RUN_EQUAL) /* their bytes are compared while they are frozen */
        return run->n && seem_equal(pages, id, run->page);
    if (kind == RUN_ALONE)
        return !run->n || same_tree(pages, id, run->page);
    if (target != run_wanted(pages, run, kind, id))
        return false;
    return kind == RUN_FRAME || !run->n ||
           (same_region(pages, target, run->target) && same_tree(pages, target, run->target));
}
