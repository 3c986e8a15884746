/* An engine's locks. */
#include "engine/locks.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "merge/budget.h"
#include "os/clock.h"
#include "os/proc_maps.h"
#include "pages/pages.h"
#include "store/lock.h"
#include "store/patience.h"

void engine_lock(ksmpy_engine *engine)
{
    atomic_fetch_add(&engine->waiting, 1);
    pthread_mutex_lock(&engine->lock);
    atomic_fetch_sub(&engine->waiting, 1);
}

void engine_unlock(ksmpy_engine *engine)
{
    pthread_mutex_unlock(&engine->lock);
}

/*
 * A mutex is not handed on: without the wait this thread would mostly have the lock again first.
 * pass_too: a pass, which all others go ahead of, is let in as well.
 */
static void let_in(const ksmpy_engine *engine, bool pass_too)
{
    for (unsigned looks = 0;
         atomic_load(&engine->waiting) || (pass_too && atomic_load(&engine->pass_waits)); looks++)
        os_back_off(looks);
}

void engine_let_others_in(ksmpy_engine *engine)
{
    engine_unlock(engine);
    let_in(engine, true);
    engine_lock(engine);
}

void engine_end_slice(ksmpy_engine *engine, uint64_t *deadline)
{
    if (os_now_ns() < *deadline)
        return;
    if (atomic_load(&engine->waiting)) {
        engine_unlock(engine);
        let_in(engine, false);
        engine_lock(engine);
    }
    *deadline = slice_end(&engine->pages);
}

void engine_lock_for_pass(ksmpy_engine *engine)
{
    atomic_store(&engine->pass_waits, true);
    pthread_mutex_lock(&engine->lock);
    atomic_store(&engine->pass_waits, false);
}

void pass_lets_others_in(ksmpy_engine *engine)
{
    engine_unlock(engine);
    let_in(engine, false);
    engine_lock_for_pass(engine);
}

void engine_count_mappings(ksmpy_engine *engine)
{
    struct census_of_mappings before = budget_before_count(&engine->merger.budget);
    engine_unlock(engine);
    int64_t mappings = os_mappings();
    engine_lock(engine);
    budget_counted(&engine->merger.budget, before, mappings);
}

int engine_try_lock_with_store(ksmpy_engine *engine)
{
    engine_lock(engine);
    int error = engine->pages.forked               ? -EPERM
                : store_lock(&engine->pages.store) ? 0
                                                   : store_why_not(&engine->pages.store);
    if (error)
        engine_unlock(engine);
    return error;
}

int engine_lock_with_store(ksmpy_engine *engine)
{
    struct patience patience = {0};
    int error;
    do
        error = engine_try_lock_with_store(engine);
    while (try_again(&patience, &error));
    return error;
}

void engine_unlock_with_store(ksmpy_engine *engine)
{
    store_unlock(&engine->pages.store);
    engine_unlock(engine);
}

void pass_lock(ksmpy_engine *engine)
{
    atomic_fetch_add(&engine->pass_wanted, 1);
    pthread_mutex_lock(&engine->pass);
    atomic_fetch_sub(&engine->pass_wanted, 1);
}

void pass_unlock(ksmpy_engine *engine)
{
    pthread_mutex_unlock(&engine->pass);
}
