/* What an engine hears from those of other processes that share its store. */
#include <errno.h>

#include "engine/engine.h"
#include "ksmpy.h"
#include "store/store.h"

#define EVENTS_AT_ONCE 256
#define LONELY_PASSES 4 /* in which nobody has joined a frame, though they look for it in each */
#define LEAVE_AT_ONCE 4096 /* pages that are unmerged before a pass to make room */

/* Candidates are where the old rule put them. */
static void forget_candidates(ksmpy_engine *engine)
{
    for (uint32_t id = engine->first_region; id != NO_REGION; id = region_at(engine, id)->next)
        for (uint64_t i = 0; i < region_at(engine, id)->n; i++)
            page_withdraw(engine, region_at(engine, id)->base + (uint32_t)i);
}

bool follow_rules(ksmpy_engine *engine)
{
    struct store *store = &engine->store;
    if (!store_lock(store))
        return false;
    bool changed = engine->rule_changes != store->head->rule_changes;
    bool zeros =
        store->head->knobs[KSMPY_KNOB_USE_ZERO_PAGES] && !engine->knobs[KSMPY_KNOB_USE_ZERO_PAGES];
    if (changed)
        forget_candidates(engine);
    for (int knob = 0; knob < STORE_KNOBS; knob++)
        engine->knobs[knob] = store->head->knobs[knob];
    engine->rule_changes = store->head->rule_changes;
    store_unlock(store);
    for (int tree = 0; zeros && tree < engine->nodes; tree++)
        unstable_wake(engine, tree, engine->sum_of_zeros);
    return true;
}

/* Some events were missed: whoever waits looks itself, and says so again. */
static void look_for_all(ksmpy_engine *engine)
{
    struct store *store = &engine->store;
    for (uint32_t id = engine->first_region; id != NO_REGION; id = region_at(engine, id)->next)
        for (uint64_t i = 0; i < region_at(engine, id)->n; i++) {
            uint32_t page = region_at(engine, id)->base + (uint32_t)i;
            const struct page *record = page_record(engine, page);
            enum page_state state = page_state(record);
            if (state != PAGE_WAITING && state != PAGE_PAIRED)
                continue;
            int tree = tree_of(engine, page_node(record));
            if (!store_lock(store)) {
                engine->events = UINT64_MAX; /* once more */
                return;
            }
            bool known = stable_knows(store, tree, page_sum(record)) ||
                         announcement_is_elsewhere(store, tree, page_sum(record));
            if (!known)
                announcement_add(store, tree, page_sum(record));
            store_unlock(store);
            if (known)
                page_withdraw(engine, page);
        }
}

void follow_events(ksmpy_engine *engine)
{
    struct event events[EVENTS_AT_ONCE];
    int64_t found;
    if (!engine->store.shared)
        return;
    while ((found = events_read(&engine->store, &engine->events, events, EVENTS_AT_ONCE)) > 0)
        for (int64_t i = 0; i < found; i++)
            if (events[i].tree < engine->nodes)
                unstable_wake(engine, events[i].tree, events[i].sum);
    if (found == -EOVERFLOW)
        look_for_all(engine);
}

/* ---- a full store ---- */

/* A frame that is ours alone, and has been for some passes? Others join without our lock: a hint. */
static bool is_lonely(const ksmpy_engine *engine, uint32_t id)
{
    struct page *page = page_record(engine, id);
    if (page_state(page) != PAGE_SHARED)
        return false;
    if (frame_at(&engine->store, page->link)->sharers != 1)
        page_set_age(page, 0);
    else if (page_age(page) < LONELY_PASSES)
        page_set_age(page, page_age(page) + 1);
    return page_age(page) >= LONELY_PASSES;
}

/* It waits for an equal one again, as it did before it was merged. */
static bool leave_frames_of(ksmpy_engine *engine, uint32_t id, uint64_t n)
{
    uint32_t region = region_of(engine, id);
    if (!memory_allows(engine, n) || !budget_make_room(engine, 2))
        return false;
    for (uint64_t i = 0; i < n; i++)
        page_set_age(page_record(engine, id + (uint32_t)i), 0);
    engine->vmas += 2;
    unmerge_pages(engine, region, id - region_at(engine, region)->base, n, PAGE_SEEN);
    return true;
}

/* How many pages were unmerged; max when there is no memory for more. */
static uint64_t leave_lonely_frames(ksmpy_engine *engine, uint32_t region, uint64_t max)
{
    const struct region *at = region_at(engine, region);
    uint64_t done = 0, n = 0;
    for (uint64_t i = 0; i < at->n && done + n < max; i++) {
        bool lonely = is_lonely(engine, at->base + (uint32_t)i);
        n += lonely;
        if (n && (!lonely || i + 1 == at->n || done + n == max)) {
            uint64_t end = lonely ? i + 1 : i;
            if (!leave_frames_of(engine, at->base + (uint32_t)(end - n), n))
                return max;
            done += n;
            n = 0;
        }
    }
    return done;
}

void follow_room(ksmpy_engine *engine)
{
    uint64_t done = 0;
    store_look_for_room(&engine->store);
    if (!engine->store.shared || !atomic_load(&engine->store.head->full))
        return;
    for (uint32_t id = engine->first_region; id != NO_REGION && done < LEAVE_AT_ONCE;
         id = region_at(engine, id)->next)
        if (region_at(engine, id)->pages_in[PAGE_SHARED] && !region_at(engine, id)->lost)
            done += leave_lonely_frames(engine, id, LEAVE_AT_ONCE - done);
    store_flush(&engine->store);
    store_look_for_room(&engine->store);
}
