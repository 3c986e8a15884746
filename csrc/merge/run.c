/* Collecting pages into runs, which merge/merge.c carries out. */
#include "base/pages.h"
#include "engine/engine.h"
#include "ksmpy.h"
#include "os/arena.h"
#include "store/store.h"

static bool same_region(const ksmpy_engine *engine, uint32_t a, uint32_t b)
{
    return region_of(engine, a) == region_of(engine, b);
}

/* The new frames of a run come from one node. */
static bool same_tree(const ksmpy_engine *engine, uint32_t a, uint32_t b)
{
    return tree_of(engine, page_node(page_record(engine, a))) ==
           tree_of(engine, page_node(page_record(engine, b)));
}

bool are_equal(const ksmpy_engine *engine, uint32_t a, uint32_t b)
{
    return page_sum(page_record(engine, a)) == page_sum(page_record(engine, b)) &&
           same_tree(engine, a, b) &&
           compare_live((const void *)page_address(engine, a),
                        (const void *)page_address(engine, b)) == 0;
}

bool run_starts_at(uintptr_t address)
{
    return address % bytes_of(RUN_MAX) == 0;
}

static bool follows(const ksmpy_engine *engine, int kind, uint32_t id)
{
    const struct run *run = &engine->run;
    return (int)run->kind == kind && id == run->page + run->n &&
           (!run->n ||
            (same_region(engine, id, run->page) && !run_starts_at(page_address(engine, id))));
}

uint32_t run_wanted(const ksmpy_engine *engine, int kind, uint32_t id)
{
    return follows(engine, kind, id) ? engine->run.target + (uint32_t)engine->run.n : NO_INDEX;
}

bool run_extends(const ksmpy_engine *engine, int kind, uint32_t id, uint32_t target)
{
    if (!follows(engine, kind, id))
        return false;
    if (kind == RUN_ZERO || kind == RUN_UNMERGE)
        return true;
    if (kind == RUN_EQUAL)
        return engine->run.n && are_equal(engine, id, engine->run.page);
    if (kind == RUN_ALONE)
        return !engine->run.n || same_tree(engine, id, engine->run.page);
    if (target != run_wanted(engine, kind, id))
        return false;
    return kind == RUN_FRAME || !engine->run.n ||
           (same_region(engine, target, engine->run.target) &&
            same_tree(engine, target, engine->run.target));
}

void run_start(ksmpy_engine *engine, int kind, uint32_t id, uint32_t target)
{
    merge_run(engine);
    engine->run.kind = kind;
    engine->run.page = id;
    engine->run.target = target;
    engine->run.n = 1;
}

void run_add(ksmpy_engine *engine, int kind, uint32_t id, uint32_t target)
{
    if (run_extends(engine, kind, id, target))
        engine->run.n++;
    else
        run_start(engine, kind, id, target);
}
