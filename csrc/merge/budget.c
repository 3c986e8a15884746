/*
 * The mapping budget.  Every isolated merged page costs up to two mappings, a
 * process may have vm.max_map_count of them, and the program needs its own:
 * the engine stops merging at a share of the limit, counted for the whole
 * process.  Between counts it assumes the worst of each of its own steps.
 */
#include "base/pages.h"
#include "engine/engine.h"
#include "ksmpy.h"
#include "os/arena.h"
#include "os/clock.h"
#include "os/maps.h"

#define LONG_RUN 16 /* pages */
#define LONG_RUNS_SHARE 16 /* one part in so many of the limit is theirs alone */
#define RECOUNT_AFTER 256 /* assumed mappings; a count reads all of /proc/self/maps */
/*
 * When there was no room for a region, the next one has the mappings counted again after so many
 * times of what that took, or after so many regions have gone.
 */
#define REST 20
#define GONE 16

static void count(ksmpy_engine *engine)
{
    uint64_t begin = os_now_ns();
    int64_t vmas = os_maps_count(&engine->maps);
    uint64_t end = os_now_ns();
    engine->count_again_ns = end + REST * (end - begin);
    engine->gone_since_count = 0;
    if (vmas < 0)
        return;
    engine->vmas = engine->vmas_counted = (uint64_t)vmas;
    uint64_t most = os_max_map_count();
    engine->vma_limit = most * engine->knobs[KSMPY_KNOB_VMA_SHARE_PERCENT] / 100;
    engine->regions_limit = engine->vma_limit > most / 2 ? engine->vma_limit : most / 2;
}

/*
 * What a run of n pages has to leave free for longer ones, which may come later in the pass: the
 * scarcer mappings get, the longer a run must be.  A page alone may use three quarters of the
 * limit, a run of 64 all but 1/256.  What nobody longer came for is given to the short ones too:
 * each full pass since the last registration halves what is held back, but for a share that short
 * runs never get, whatever there is of them, so that data that comes later can merge as well.
 */
static uint64_t held_back(const ksmpy_engine *engine, uint64_t n)
{
    uint64_t calm = engine->full_scans - engine->calm_since;
    uint64_t for_now = calm < 64 ? engine->vma_limit / 4 / n >> calm : 0;
    uint64_t for_ever = n < LONG_RUN ? engine->vma_limit / LONG_RUNS_SHARE : 0;
    return for_now > for_ever ? for_now : for_ever;
}

bool budget_has_room(const ksmpy_engine *engine, uint64_t more)
{
    return engine->vmas + more <= engine->vma_limit;
}

static bool has_room_recounted(ksmpy_engine *engine, uint64_t more)
{
    if (!budget_has_room(engine, more) && engine->vmas - engine->vmas_counted >= RECOUNT_AFTER)
        count(engine);
    return budget_has_room(engine, more);
}

void budget_recount(ksmpy_engine *engine, uint64_t more)
{
    has_room_recounted(engine, more);
}

bool budget_allows(ksmpy_engine *engine, uint64_t n, uint64_t more)
{
    return has_room_recounted(engine, more + held_back(engine, n));
}

/* Smaller regions leave room for larger ones, for which the same mappings do more. */
static bool has_room_for_region(const ksmpy_engine *engine, uint64_t n, uint64_t more)
{
    return engine->vmas + more + engine->regions_limit / 4 / n <= engine->regions_limit;
}

bool budget_admits(ksmpy_engine *engine, uint64_t n, uint64_t more)
{
    bool room = !more || has_room_for_region(engine, n, more);
    if (!room && (engine->gone_since_count >= GONE || os_now_ns() >= engine->count_again_ns)) {
        count(engine);
        room = has_room_for_region(engine, n, more);
    }
    if (room)
        engine->vmas += more;
    return room;
}

void budget_refuse(ksmpy_engine *engine, uint32_t page, uint64_t n, uint64_t length)
{
    engine->refused = length > engine->refused ? length : engine->refused;
    for (uint32_t id = page; id < page + n; id++)
        if (page_state(page_record(engine, id)) == PAGE_SEEN)
            page_become(engine, id, PAGE_REFUSED, NO_INDEX);
}

/* Enough for many of the refused pages, or they would all be looked up for the sake of a few. */
static void ask_again(ksmpy_engine *engine)
{
    uint64_t enough = engine->vma_limit / 256 + 4;
    engine->asks_again = engine->refused && budget_allows(engine, engine->refused, enough);
    if (engine->asks_again)
        engine->refused = 0;
}

/* ---- making room ---- */

typedef void visit(ksmpy_engine *engine, uint32_t region, uint64_t first, uint64_t n, void *data);

static void each_overlay(ksmpy_engine *engine, visit *visit, void *data)
{
    os_maps_refresh(&engine->maps);
    for (uint32_t id = engine->first_region; id != NO_REGION; id = region_at(engine, id)->next) {
        const struct region *region = region_at(engine, id);
        uintptr_t at = region->address, end = at + bytes_of(region->n);
        struct os_vma vma;
        while (!region->lost && region->pages_in[PAGE_SHARED] && at < end &&
               os_maps_find(&engine->maps, at, &vma) > 0 && vma.start < end) {
            uintptr_t start = vma.start > at ? vma.start : at;
            at = vma.end < end ? vma.end : end;
            if (is_overlay(engine, &vma))
                visit(engine, id, (start - region->address) >> PAGE_SHIFT,
                      (at - start) >> PAGE_SHIFT, data);
        }
    }
}

struct shortest {
    uint64_t pages[RUN_MAX + 1]; /* that lie in overlays of so many pages; the last: or more */
    uint64_t longest; /* of the overlays that have to go */
    uint64_t wanted;  /* pages that have to go */
};

static void count_pages(ksmpy_engine *engine, uint32_t region, uint64_t first, uint64_t n,
                        void *data)
{
    struct shortest *shortest = data;
    (void)engine, (void)region, (void)first;
    shortest->pages[least(n, RUN_MAX)] += n;
}

static void take_apart(ksmpy_engine *engine, uint32_t region, uint64_t first, uint64_t n,
                       void *data)
{
    struct shortest *shortest = data;
    if (n > shortest->longest || !shortest->wanted || !memory_allows(engine, n))
        return;
    shortest->wanted -= least(n, shortest->wanted);
    unmerge_pages(engine, region, first, n, PAGE_SEEN);
}

/*
 * A page in a run that was written must come out of it, which takes two mappings.  When there are
 * none, overlays are taken apart, the shortest first: some at a time, as it takes three looks at
 * all mappings, but never many pages.  Not where they leave as many mappings behind (signal).
 * They may come back when nothing else needs the room for some passes.
 */
bool budget_make_room(ksmpy_engine *engine, uint64_t more)
{
    struct shortest shortest = {.wanted = engine->vma_limit / 64 + 1};
    if (has_room_recounted(engine, more))
        return true;
    if (engine->fz.mode == KSMPY_FREEZE_SIGNAL || engine->cramped_in == engine->full_scans + 1)
        return false;
    each_overlay(engine, count_pages, &shortest);
    for (uint64_t found = 0; found < shortest.wanted && shortest.longest < RUN_MAX;)
        found += shortest.pages[++shortest.longest];
    each_overlay(engine, take_apart, &shortest);
    engine->calm_since = engine->full_scans;
    count(engine);
    if (budget_has_room(engine, more))
        return true;
    engine->cramped_in = engine->full_scans + 1;
    return false;
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
        if (!is_overlay(engine, &vma) && !(vma.private_rw && !vma.inode))
            return false;
        at = vma.end;
    }
    return true;
}

void lose_region(ksmpy_engine *engine, uint32_t id)
{
    struct region *region = region_at(engine, id);
    if (region->lost)
        return;
    region->lost = true;
    for (uint64_t i = 0; i < region->n; i++) /* nobody may look at its bytes any more */
        page_withdraw(engine, region->base + (uint32_t)i);
    engine->lost += region->n;
}

static void look_for_loss(ksmpy_engine *engine, uint32_t id)
{
    const struct region *region = region_at(engine, id);
    if (!region->lost && !intact(engine, region))
        lose_region(engine, id);
}

void budget_find_lost(ksmpy_engine *engine)
{
    os_maps_refresh(&engine->maps);
    for (uint32_t id = engine->first_region; id != NO_REGION; id = region_at(engine, id)->next)
        look_for_loss(engine, id);
}

void budget_check_lost(ksmpy_engine *engine, uint32_t region)
{
    os_maps_refresh(&engine->maps);
    look_for_loss(engine, region);
}

void budget_survey(ksmpy_engine *engine)
{
    count(engine);
    ask_again(engine);
    budget_find_lost(engine);
    engine->result->lost += engine->lost - engine->lost_told;
    engine->lost_told = engine->lost;
}
