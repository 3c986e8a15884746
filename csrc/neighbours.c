/* What an engine hears from those of other processes that share its store. */
#include <errno.h>

#include "engine.h"

#define NEWS_AT_ONCE 256

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

/* Some news were missed: whoever waits looks itself, and says so again. */
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
                engine->news = UINT64_MAX; /* once more */
                return;
            }
            bool known = stable_knows(store, tree, page_sum(record)) ||
                         wanted_is_elsewhere(store, tree, page_sum(record));
            if (!known)
                wanted_add(store, tree, page_sum(record));
            store_unlock(store);
            if (known)
                page_withdraw(engine, page);
        }
}

void follow_news(ksmpy_engine *engine)
{
    struct news news[NEWS_AT_ONCE];
    int64_t found;
    if (!engine->store.shared)
        return;
    while ((found = news_read(&engine->store, &engine->news, news, NEWS_AT_ONCE)) > 0)
        for (int64_t i = 0; i < found; i++)
            if (news[i].tree < engine->nodes)
                unstable_wake(engine, news[i].tree, news[i].sum);
    if (found == -EOVERFLOW)
        look_for_all(engine);
}
