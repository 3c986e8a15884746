/*
 * The mapping budget.  Every isolated merged page costs up to two mappings, a
 * process may have vm.max_map_count of them, and the program needs its own:
 * the engine stops merging at a share of the limit, counted for the whole
 * process.  Between counts it assumes the worst of each of its own steps.
 */
#include "engine.h"

#define RECOUNT_AFTER 256 /* assumed mappings; a count reads all of /proc/self/maps */

static void count(ksmpy_engine *engine)
{
    int64_t vmas = os_maps_count(&engine->maps);
    if (vmas < 0)
        return;
    engine->vmas = engine->vmas_counted = (uint64_t)vmas;
    engine->vma_limit = os_max_map_count() * engine->knobs[KSMPY_KNOB_VMA_SHARE_PERCENT] / 100;
}

bool budget_allows(ksmpy_engine *engine, uint64_t more)
{
    if (engine->vmas + more <= engine->vma_limit)
        return true;
    if (engine->vmas - engine->vmas_counted >= RECOUNT_AFTER)
        count(engine);
    return engine->vmas + more <= engine->vma_limit;
}

/* Is all of the region still memory that we know: anonymous, or an overlay? */
static bool intact(ksmpy_engine *engine, const struct region *region)
{
    uintptr_t at = region->address, end = at + bytes_of(region->n);
    while (at < end) {
        struct os_vma vma;
        int found = os_maps_find(&engine->maps, at, &vma);
        if (found < 0)
            return true; /* nobody knows; the next pass asks again */
        if (!found || vma.start > at)
            return false;
        if (!is_overlay(engine, &vma) && !vma.private_anonymous_rw)
            return false;
        at = vma.end;
    }
    return true;
}

void budget_find_lost(ksmpy_engine *engine)
{
    os_maps_refresh(&engine->maps);
    for (uint32_t id = engine->first_region; id != NO_REGION; id = region_at(engine, id)->next) {
        struct region *region = region_at(engine, id);
        if (region->lost || intact(engine, region))
            continue;
        region->lost = true;
        for (uint64_t i = 0; i < region->n; i++) /* nobody may look at its bytes any more */
            page_withdraw(engine, region->base + (uint32_t)i);
        engine->lost += region->n;
    }
}

void budget_survey(ksmpy_engine *engine)
{
    uint64_t before = engine->lost;
    count(engine);
    budget_find_lost(engine);
    engine->result->lost += engine->lost - before;
}
