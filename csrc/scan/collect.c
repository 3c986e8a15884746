/* Collecting pages into runs, which merge/merge.c carries out. */
#include "scan/collect.h"

#include "merge/merge.h"
#include "merge/run.h"
#include "scan/scanner.h"
#include "scan/window.h"

bool carry_out(struct scanner *scanner)
{
    struct run run = scanner->run;
    if (!run.n)
        return false;
    scanner->run.page += (uint32_t)run.n;
    scanner->run.target += (uint32_t)run.n;
    scanner->run.n = 0;
    struct outlook outlook = window_outlook(scanner);
    if (!merge_run(scanner->merger, run, &outlook))
        return false;
    if (run.kind == RUN_UNMERGE)
        return true;
    window_pages_merged(scanner, run.page, run.n);
    if (run.kind == RUN_PAGE)
        window_pages_merged(scanner, run.target, run.n);
    return true;
}

void collect_first(struct scanner *scanner, int kind, uint32_t id, uint32_t target)
{
    carry_out(scanner);
    scanner->run.kind = kind;
    scanner->run.page = id;
    scanner->run.target = target;
    scanner->run.n = 1;
}

void collect(struct scanner *scanner, int kind, uint32_t id, uint32_t target)
{
    if (run_extends(scanner->pages, &scanner->run, kind, id, target))
        scanner->run.n++;
    else
        collect_first(scanner, kind, id, target);
}
