/* What an engine hears from those of other processes that share its store. */
#include "pages/peers.h"

#include <errno.h>

#include "base/pages.h"
#include "os/clock.h"
#include "pages/candidates.h"
#include "pages/pages.h"
#include "pages/regions.h"
#include "store/announce.h"
#include "store/board.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/stable.h"
#include "store/store.h"

#define EVENTS_AT_ONCE 256 /* read in one go of the store's lock: 4 KiB of the stack */
/* Pages that are looked up in one go of it, in some 4 us if all of them wait. */
#define LOOKED_FOR_AT_ONCE 32

/* The rule says which tree a candidate is in, so all leave the index before it changes. */
static void forget_candidates(struct pages *pages)
{
    EACH_PAGE (pages, id)
        page_withdraw(pages, id);
}

bool follow_rules(struct pages *pages)
{
    struct store *store = &pages->store;
    if (!store_lock(store))
        return false;
    bool changed = pages->rules_followed != store->head->rule_changes;
    bool zeros =
        store->head->knobs[KSMPY_KNOB_USE_ZERO_PAGES] && !pages->knobs[KSMPY_KNOB_USE_ZERO_PAGES];
    if (changed)
        forget_candidates(pages);
    for (int knob = 0; knob < STORE_KNOBS; knob++)
        pages->knobs[knob] = store->head->knobs[knob];
    pages->rules_followed = store->head->rule_changes;
    store_unlock(store);
    for (int tree = 0; zeros && tree < pages->nodes; tree++)
        candidates_wake(pages, tree, pages->sum_of_zeros);
    return true;
}

/* Wakes a waiting page that others have a frame for, or announces it anew. */
static void look_for_page(struct pages *pages, uint32_t id)
{
    struct store *store = &pages->store;
    const struct page *page = page_record(pages, id);
    int tree = tree_of(pages, page_node(page));
    bool known = stable_knows(store, tree, page_sum(page)) ||
                 announcement_is_elsewhere(store, tree, page_sum(page));
    if (known)
        page_withdraw(pages, id);
    else
        announcement_add(store, tree, page_sum(page), false);
}

static bool any_waits(const struct pages *pages, uint32_t id, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (page_waits(page_record(pages, id + (uint32_t)i)))
            return true;
    return false;
}

/* The same for the waiting pages of a region, from one of them on; false: not for all of them. */
static bool look_for_some(struct pages *pages, const struct region *region, uint64_t deadline)
{
    for (uint64_t i = region_page_from(region, pages->looked_to), end; i < region->n; i = end) {
        end = least(i + LOOKED_FOR_AT_ONCE, region->n);
        pages->looked_to = region->address + bytes_of(i);
        if (!any_waits(pages, region->base + (uint32_t)i, end - i))
            continue;
        if (os_now_ns() > deadline || !store_lock(&pages->store))
            return false;
        for (uint32_t id = region->base + (uint32_t)i; id < region->base + (uint32_t)end; id++)
            if (page_waits(page_record(pages, id)))
                look_for_page(pages, id);
        store_unlock(&pages->store);
    }
    pages->looked_to = region->address + bytes_of(region->n);
    return true;
}

/* After events were missed: looks all waiting pages up, and announces those that wait on. */
static bool look_for_all(struct pages *pages, uint64_t deadline)
{
    for (uint32_t id; (id = region_from(pages, pages->looked_to)) != NO_REGION;)
        if (!look_for_some(pages, region_at(pages, id), deadline))
            return false;
    pages->missed_events = false;
    return true;
}

bool follow_events(struct pages *pages)
{
    struct event events[EVENTS_AT_ONCE];
    uint64_t deadline = slice_end(pages);
    int64_t found = 1;
    if (!pages->store.shared)
        return true;
    if (pages->missed_events && !look_for_all(pages, deadline))
        return false;
    while (found > 0 && os_now_ns() < deadline) {
        found = events_read(&pages->store, &pages->events_read, events, EVENTS_AT_ONCE);
        for (int64_t i = 0; i < found; i++)
            if (events[i].tree < pages->nodes)
                candidates_wake(pages, events[i].tree, events[i].sum);
    }
    if (found == -EOVERFLOW) {
        pages->missed_events = true;
        pages->looked_to = 0;
    }
    return found == 0;
}
