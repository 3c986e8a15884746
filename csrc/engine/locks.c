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

/* By who goes on with something long, or wants it more urgently. */
static void lock_ahead_of_pass(ksmpy_engine *engine)
{
    atomic_fetch_add(&engine->waiting, 1);
    pthread_mutex_lock(&engine->lock);
    atomic_fetch_sub(&engine->waiting, 1);
}

void engine_lock(ksmpy_engine *engine)
{
    atomic_fetch_add(&engine->urgent, 1);
    lock_ahead_of_pass(engine);
    atomic_fetch_sub(&engine->urgent, 1);
}

void engine_unlock(ksmpy_engine *engine)
{
    pthread_mutex_unlock(&engine->lock);
}

/* Who is let in: who wants the lock urgently; also who goes on with something long; also a pass. */
enum others { URGENT, WAITING, ALL };

static bool are_there(const ksmpy_engine *engine, enum others others)
{
    if (others == URGENT)
        return atomic_load(&engine->urgent);
    return atomic_load(&engine->waiting) || (others == ALL && atomic_load(&engine->pass_waits));
}

/* A mutex is not handed on: without the wait this thread would mostly have the lock again first. */
static void let_in(const ksmpy_engine *engine, enum others others)
{
    for (unsigned looks = 0; are_there(engine, others); looks++)
        os_back_off(looks);
}

static void hand_over(ksmpy_engine *engine, enum others others, void (*lock)(ksmpy_engine *))
{
    engine_unlock(engine);
    let_in(engine, others);
    lock(engine);
}

void engine_let_others_in(ksmpy_engine *engine)
{
    hand_over(engine, ALL, lock_ahead_of_pass);
}

void engine_end_slice(ksmpy_engine *engine, uint64_t *deadline)
{
    if (os_now_ns() < *deadline)
        return;
    if (are_there(engine, WAITING))
        hand_over(engine, WAITING, lock_ahead_of_pass);
    *deadline = slice_end(&engine->pages);
}

#define COUNTED_IN_A_ROW 4 /* slices: 2 ms */

void engine_end_count(ksmpy_engine *engine, struct counting *counting)
{
    if (os_now_ns() < counting->slice_end_ns)
        return;
    enum others others = ++counting->slices % COUNTED_IN_A_ROW ? URGENT : WAITING;
    if (are_there(engine, others))
        hand_over(engine, others, engine_lock);
    counting->slice_end_ns = slice_end(&engine->pages);
}

void engine_lock_for_pass(ksmpy_engine *engine)
{
    atomic_store(&engine->pass_waits, true);
    pthread_mutex_lock(&engine->lock);
    atomic_store(&engine->pass_waits, false);
}

void pass_lets_others_in(ksmpy_engine *engine)
{
    hand_over(engine, WAITING, engine_lock_for_pass);
}

void engine_count_mappings(ksmpy_engine *engine)
{
    struct census_of_mappings before = budget_before_count(&engine->merger.budget);
    engine_unlock(engine);
    int64_t mappings = os_mappings();
    engine_lock(engine);
    budget_counted(&engine->merger.budget, before, mappings);
}

int engine_try_lock_store(ksmpy_engine *engine)
{
    if (engine->pages.forked)
        return -EPERM;
    return store_lock(&engine->pages.store) ? 0 : store_why_not(&engine->pages.store);
}

int engine_try_lock_with_store(ksmpy_engine *engine)
{
    engine_lock(engine);
    int error = engine_try_lock_store(engine);
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
