/*
 * The mapping budget.  Every isolated merged page costs up to two mappings, a
 * process may have vm.max_map_count of them, and the program needs its own:
 * the engine stops merging at a share of the limit, counted for the whole
 * process.  Between counts it assumes the worst of each of its own steps.
 */
#include "merge/budget.h"

#include "merge/merger.h"
#include "os/arena.h"
#include "os/clock.h"
#include "os/proc_maps.h"
#include "pages/pages.h"
#include "pages/records.h"

#define LONG_RUN 16 /* pages */
#define LONG_RUNS_SHARE 16 /* one part in so many of the limit is theirs alone */
#define RECOUNT_AFTER 256 /* assumed mappings; a count reads all of /proc/self/maps */
/*
 * When there was no room for a region, the next one has the mappings counted again after so many
 * times of what that took, or after so many regions have gone.
 */
#define REST 20
#define GONE 16
/*
 * A pass over memory that is merged and at rest takes less than a count, of a usual process two
 * thirds of it.  What the program itself maps meanwhile is seen after so long, or after so many
 * times of what a count takes.
 */
#define OUTDATED_NS 1000000000
#define OUTDATED_REST 1000
/*
 * The engine's own steps wait for that count as well, as long as they come to less than one part in so
 * many of the room left: a program that writes here and there has some pages merged anew in each of
 * several passes a second, and counting was a sixth of what these cost.
 */
#define DRIFT_SHARE 64

static uint64_t share_of(const struct budget *budget, uint64_t most)
{
    return most * budget->pages->knobs[KSMPY_KNOB_VMA_SHARE_PERCENT] / 100;
}

/* Of all mappings, which took so long to count. */
static void set_count(struct budget *budget, int64_t mappings, uint64_t took)
{
    uint64_t now = os_now_ns(), rest = OUTDATED_REST * took;
    budget->count_again_ns = now + REST * took;
    budget->outdated_ns = now + (rest > OUTDATED_NS ? rest : OUTDATED_NS);
    budget->gone_since_count = 0;
    budget->counts++;
    if (mappings < 0)
        return;
    budget->mappings = budget->counted = (uint64_t)mappings;
    uint64_t most = os_max_map_count();
    budget->limit = share_of(budget, most);
    budget->regions_limit = budget->limit > most / 2 ? budget->limit : most / 2;
}

void budget_count(struct budget *budget)
{
    uint64_t begin = os_now_ns();
    int64_t mappings = os_maps_count(&budget->pages->maps);
    set_count(budget, mappings, os_now_ns() - begin);
}

/* By how much at most what is assumed may differ from what there is. */
static uint64_t drift(const struct budget *budget)
{
    uint64_t assumed = budget->mappings, counted = budget->counted;
    return assumed > counted ? assumed - counted : counted - assumed;
}

static uint64_t room_left(const struct budget *budget)
{
    return budget->mappings < budget->limit ? budget->limit - budget->mappings : 0;
}

bool budget_is_outdated(const struct budget *budget)
{
    return drift(budget) > room_left(budget) / DRIFT_SHARE || budget->gone_since_count ||
           budget->refused || os_now_ns() >= budget->outdated_ns ||
           budget->limit != share_of(budget, os_max_map_count());
}

struct census_of_mappings budget_before_count(const struct budget *budget)
{
    return (struct census_of_mappings){budget->counts, budget->mappings, os_now_ns()};
}

void budget_counted(struct budget *budget, struct census_of_mappings before, int64_t mappings)
{
    int64_t taken = (int64_t)(budget->mappings - before.mappings);
    if (mappings < 0)
        budget_count(budget);
    else if (budget->counts == before.counts)
        set_count(budget, mappings + taken, os_now_ns() - before.begin_ns);
}

/*
 * What a run of n pages has to leave free for longer ones, which may come later in the pass: the
 * scarcer mappings get, the longer a run must be.  A page alone may use three quarters of the
 * limit, a run of 64 all but 1/256.  What nobody longer came for is given to the short ones too:
 * each full pass since the last registration halves what is held back, but for a share that short
 * runs never get, whatever there is of them, so that data that comes later can merge as well.
 */
static uint64_t held_back(const struct budget *budget, uint64_t n)
{
    uint64_t calm = budget->pages->full_scans - budget->calm_since;
    uint64_t for_now = calm < 64 ? budget->limit / 4 / n >> calm : 0;
    uint64_t for_ever = n < LONG_RUN ? budget->limit / LONG_RUNS_SHARE : 0;
    return for_now > for_ever ? for_now : for_ever;
}

bool budget_has_room(const struct budget *budget, uint64_t more)
{
    return budget->mappings + more <= budget->limit;
}

bool budget_has_room_recounted(struct budget *budget, uint64_t more)
{
    if (!budget_has_room(budget, more) && budget->mappings - budget->counted >= RECOUNT_AFTER)
        budget_count(budget);
    return budget_has_room(budget, more);
}

bool budget_allows(struct budget *budget, uint64_t n, uint64_t more)
{
    return budget_has_room_recounted(budget, more + held_back(budget, n));
}

/* Smaller regions leave room for larger ones, for which the same mappings do more. */
static bool has_room_for_region(const struct budget *budget, uint64_t n, uint64_t more)
{
    return budget->mappings + more + budget->regions_limit / 4 / n <= budget->regions_limit;
}

bool budget_should_count(const struct budget *budget, uint64_t n, uint64_t more)
{
    return more && !has_room_for_region(budget, n, more) &&
           (budget->gone_since_count >= GONE || os_now_ns() >= budget->count_again_ns);
}

bool budget_admits(struct budget *budget, uint64_t n, uint64_t more)
{
    bool room = !more || has_room_for_region(budget, n, more);
    if (room)
        budget->mappings += more;
    return room;
}

void budget_region_came(struct budget *budget)
{
    budget->calm_since = budget->pages->full_scans;
}

void budget_region_went(struct budget *budget)
{
    budget->gone_since_count++;
}

void budget_refuse(struct budget *budget, uint32_t page, uint64_t n, uint64_t length)
{
    budget->refused = length > budget->refused ? length : budget->refused;
    for (uint32_t id = page; id < page + n; id++)
        if (page_state(page_record(budget->pages, id)) == PAGE_SEEN)
            page_become(budget->pages, id, PAGE_REFUSED, NO_INDEX);
}

/* Enough for many of the refused pages, or they would all be looked up for the sake of a few. */
static void ask_again(struct budget *budget)
{
    uint64_t enough = budget->limit / 256 + 4;
    budget->asks_again = budget->refused && budget_allows(budget, budget->refused, enough);
    if (budget->asks_again)
        budget->refused = 0;
}

void budget_survey(struct budget *budget)
{
    ask_again(budget);
}
