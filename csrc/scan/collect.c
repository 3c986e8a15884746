/* Collecting pages into runs, which merge/merge.c carries out. */
#include "scan/collect.h"

#include "merge/merge.h"
#include "merge/rest.h"
#include "merge/run.h"
#include "pages/pages.h"
#include "scan/scanner.h"
#include "scan/window.h"

bool carry_out(struct scanner *scanner)
{
    struct run *run = &scanner->run, whole = *run;
    if (!whole.n)
        return false;
    struct outlook outlook = window_outlook(scanner);
    bool merged = merge_run(scanner->merger, run, &outlook);
    scanner->unfinished = run->n != 0;
    if (!run->n) {
        run->page = whole.page + (uint32_t)whole.n;
        run->target = whole.target + (uint32_t)whole.n;
    }
    if (merged && whole.kind != RUN_UNMERGE)
        window_pages_merged(scanner, whole.page, whole.n);
    if (merged && whole.kind == RUN_PAGE)
        window_pages_merged(scanner, whole.target, whole.n);
    return merged;
}

bool collect_first(struct scanner *scanner, int kind, uint32_t id, uint32_t target)
{
    carry_out(scanner);
    if (scanner->unfinished)
        return false;
    scanner->run = (struct run){.kind = kind, .page = id, .target = target, .n = 1};
    return true;
}

bool collect(struct scanner *scanner, int kind, uint32_t id, uint32_t target)
{
    bool extends = run_extends(scanner->pages, &scanner->run, kind, id, target);
    if (extends)
        scanner->run.n++;
    return extends || collect_first(scanner, kind, id, target);
}

/* What others left of the run is nothing: the pass, whose frames these are, gives them back. */
static void end_if_empty(struct scanner *scanner)
{
    if (scanner->run.n)
        return;
    rest_give_frames_back(&scanner->pages->store, &scanner->run);
    scanner->run.begun = scanner->unfinished = false;
}

void take_run_up(struct scanner *scanner)
{
    rest_revise(scanner->pages, &scanner->run);
    end_if_empty(scanner);
    if (scanner->unfinished)
        carry_out(scanner);
}

void leave_run(struct scanner *scanner)
{
    rest_shorten(scanner->pages, &scanner->run, 0);
    end_if_empty(scanner);
}

void leave_run_in(struct scanner *scanner, uint32_t region)
{
    const struct run *run = &scanner->run;
    if (run->n && (region_of(scanner->pages, run->page) == region ||
                   (run->kind == RUN_PAGE && region_of(scanner->pages, run->target) == region)))
        rest_shorten(scanner->pages, &scanner->run, 0);
}
