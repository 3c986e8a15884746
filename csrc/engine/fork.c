/*
 * What fork() does to engines.  Before it every engine is brought to rest:
 * nothing is frozen, no change is half done, and a lease is taken by which
 * others see for how long the child may map our frames.  In the child the
 * memory stays as it is (overlays are copy-on-write for it as well), but its
 * copy of the engine has no threads, and descriptors that act on the parent.
 * Such an engine can still give memory back, with a freezer of its own.  On a
 * shared store it can become a whole engine again (ksmpy_revive).
 */
#include "engine/fork.h"

#include <pthread.h>
#include <stdatomic.h>

#include "engine/locks.h"
#include "freeze/bystanders.h"
#include "freeze/freezer.h"
#include "freeze/moving.h"
#include "merge/plan.h"
#include "merge/run.h"
#include "os/forks.h"
#include "os/imports.h"
#include "os/proc_maps.h"
#include "pages/pages.h"
#include "pages/regions.h"
#include "pages/sharing.h"
#include "store/children.h"

static ksmpy_engine *all; /* changed between fork_hold() and fork_let_go() only */

static void before_fork(void)
{
    os_imports_before_fork();
    bystanders_hurry();
    for (ksmpy_engine *engine = all; engine; engine = engine->next) {
        engine_lock(engine);
        pthread_mutex_lock(&engine->merger.fz.lock);
        if (!engine->pages.forked)
            store_fork_prepare(&engine->pages.store);
    }
    bystanders_settle();
}

static void in_parent(void)
{
    for (ksmpy_engine *engine = all; engine; engine = engine->next) {
        store_fork_parent(&engine->pages.store);
        pthread_mutex_unlock(&engine->merger.fz.lock);
        engine_unlock(engine);
    }
    bystanders_need_not_hurry();
    os_imports_after_fork(false);
}

/* Threads of the parent's that were giving pages back, between two slices, are not in the child. */
static void forget_callers(struct pages *pages)
{
    EACH_REGION (pages, id)
        region_at(pages, id)->leaving = 0;
}

static void let_go(ksmpy_engine *engine)
{
    freezer_abandon(&engine->merger.fz);
    os_maps_close(&engine->pages.maps);
    if (!engine->pages.forked) /* in a child's child the store is abandoned already */
        store_abandon(&engine->pages.store);
    engine->pages.forked = true;
    forget_callers(&engine->pages);
    region_forget_arriving(&engine->pages);
    sharing_end_lease(&engine->pages);
    engine->scanner.run = (struct run){.kind = RUN_NONE};
    engine->scanner.unfinished = false;
    plan_forget(&engine->merger);
    atomic_store(&engine->waiting, 0);
    atomic_store(&engine->urgent, 0);
    atomic_store(&engine->pass_waits, false);
    atomic_store(&engine->pass_wanted, 0);
    pthread_mutex_init(&engine->lock, NULL);
    pthread_mutex_init(&engine->arrivals, NULL);
    pthread_mutex_init(&engine->refreshing, NULL);
    pthread_mutex_init(&engine->pass, NULL);
}

static void in_child(void)
{
    os_imports_after_fork(true);
    bystanders_forget();
    moving_forget_all();
    for (ksmpy_engine *engine = all; engine; engine = engine->next)
        let_go(engine);
}

static const struct fork_calls fork_calls = {before_fork, in_parent, in_child};

int fork_watch(void)
{
    return forks_call(&fork_calls);
}

void fork_enlist(ksmpy_engine *engine)
{
    engine->next = all;
    all = engine;
}

void fork_delist(ksmpy_engine *engine)
{
    ksmpy_engine **link = &all;
    while (*link && *link != engine)
        link = &(*link)->next;
    if (*link)
        *link = engine->next;
}
