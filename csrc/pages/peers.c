/* What an engine hears from those of other processes that share its store. */
#include "pages/peers.h"

#include <errno.h>

#include "pages/candidates.h"
#include "pages/pages.h"
#include "store/announce.h"
#include "store/board.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/stable.h"
#include "store/store.h"

#define EVENTS_AT_ONCE 256 /* read in one go of the store's lock: 4 KiB of the stack */

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

/* After events were missed: looks every waiting page up, and announces those that wait on. */
static void look_for_all(struct pages *pages)
{
    struct store *store = &pages->store;
    EACH_PAGE (pages, id) {
        const struct page *page = page_record(pages, id);
        if (!page_waits(page))
            continue;
        int tree = tree_of(pages, page_node(page));
        if (!store_lock(store)) {
            pages->events_read = UINT64_MAX; /* makes the next call look all pages up again */
            return;
        }
        bool known = stable_knows(store, tree, page_sum(page)) ||
                     announcement_is_elsewhere(store, tree, page_sum(page));
        if (!known)
            announcement_add(store, tree, page_sum(page));
        store_unlock(store);
        if (known)
            page_withdraw(pages, id);
    }
}

void follow_events(struct pages *pages)
{
    struct event events[EVENTS_AT_ONCE];
    int64_t found;
    if (!pages->store.shared)
        return;
    while ((found = events_read(&pages->store, &pages->events_read, events, EVENTS_AT_ONCE)) > 0)
        for (int64_t i = 0; i < found; i++)
            if (events[i].tree < pages->nodes)
                candidates_wake(pages, events[i].tree, events[i].sum);
    if (found == -EOVERFLOW)
        look_for_all(pages);
}
