/* The knobs: what each may be set to, and what follows from it. */
#include "engine/knobs.h"

#include <errno.h>

#include "engine/check.h"
#include "engine/locks.h"
#include "merge/merger.h"
#include "pages/pages.h"
#include "pages/peers.h"
#include "store/frames.h"
#include "store/layout.h"
#include "store/rules.h"
#include "store/store.h"

void default_knobs(uint64_t *knobs)
{
    knobs[KSMPY_KNOB_SMART_SCAN] = 1;
    knobs[KSMPY_KNOB_STABLE_NODE_CHAINS_PRUNE_MILLISECS] = 2000;
    knobs[KSMPY_KNOB_VMA_SHARE_PERCENT] = 50;
}

/* Frames made by the old rule must be gone: -EBUSY while one is shared, or a child may map one. */
static int change_rule(struct pages *pages, int knob, uint64_t value)
{
    struct store *store = &pages->store;
    int error = 0;
    if (store->head->knobs[knob] == value)
        return 0;
    store_reap(store);
    if (store->head->live_frames || store->head->shared_frames) {
        error = -EBUSY;
    } else {
        store->head->knobs[knob] = value;
        store->head->rule_changes++;
    }
    return error;
}

static int set_knob(struct budget *budget, int knob, uint64_t value)
{
    int error = 0;
    if (knob == KSMPY_KNOB_MERGE_ACROSS_NODES || knob == KSMPY_KNOB_MAX_PAGE_SHARING)
        error = change_rule(budget->pages, knob, value);
    else if (knob == KSMPY_KNOB_USE_ZERO_PAGES)
        budget->pages->store.head->knobs[knob] = value;
    else
        budget->pages->knobs[knob] = value;
    budget->count_again_ns = 0;
    follow_rules(budget->pages);
    return error;
}

static int check(int knob, uint64_t value)
{
    switch (knob) {
    case KSMPY_KNOB_SMART_SCAN:
        return value <= 1 ? 0 : -EINVAL;
    case KSMPY_KNOB_VMA_SHARE_PERCENT:
        return value >= 1 && value <= 100 ? 0 : -EINVAL;
    case KSMPY_KNOB_STABLE_NODE_CHAINS_PRUNE_MILLISECS:
        return value <= UINT32_MAX ? 0 : -EINVAL;
    default:
        return rule_check(knob, value);
    }
}

int ksmpy_knob_set(ksmpy_engine *engine, int knob, uint64_t value)
{
    int error = check(knob, value);
    if (error)
        return error;
    pass_lock(engine);
    error = engine_lock_with_store(engine);
    if (!error) {
        error = set_knob(&engine->merger.budget, knob, value);
        engine_unlock_with_store(engine);
    }
    pass_unlock(engine);
    check_step(engine);
    return error;
}

int ksmpy_knob_get(ksmpy_engine *engine, int knob, uint64_t *value)
{
    if (knob < 0 || knob >= KSMPY_KNOB_COUNT)
        return -EINVAL;
    engine_lock(engine);
    bool rule = knob < STORE_KNOBS && !engine->pages.forked;
    *value = rule ? engine->pages.store.head->knobs[knob] : engine->pages.knobs[knob];
    engine_unlock(engine);
    return 0;
}
