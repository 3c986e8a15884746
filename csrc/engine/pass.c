/* A pass in slices, between which other threads get the lock. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/pages.h"
#include "engine/check.h"
#include "engine/locks.h"
#include "freeze/bystanders.h"
#include "freeze/retries.h"
#include "merge/bar.h"
#include "merge/budget.h"
#include "os/guard.h"
#include "pages/lost.h"
#include "scan/scan.h"
#include "store/collapse.h"
#include "store/lock.h"
#include "store/patience.h"

/* Is the pass to end: has ksmpy_interrupt() been called, or does a thread want the pass lock? */
static bool stopped(const ksmpy_engine *engine)
{
    return atomic_load(&engine->interrupted) || atomic_load(&engine->pass_wanted);
}

/*
 * Waits a while for the store's lock, which another process has.  The engine's lock is given back
 * meanwhile, so that none of our threads waits for that process.
 */
static int wait_for_store(ksmpy_engine *engine, struct patience *patience)
{
    int error = store_why_not(&engine->pages.store);
    engine_unlock(engine);
    try_again(patience, &error);
    engine_lock_for_pass(engine);
    return error;
}

/* Finds out what a pass has to know at its start; other threads get the lock meanwhile. */
static void begin_pass(ksmpy_engine *engine)
{
    if (budget_is_outdated(&engine->merger.budget))
        engine_count_mappings(engine);
    for (uintptr_t at = 0; find_lost_some(&engine->pages, &at);)
        pass_lets_others_in(engine);
    scan_begin_pass(&engine->scanner);
}

/*
 * Is all known that has to be known before a slice?  If not, others have had the lock meanwhile:
 * it is to be tried again, unless *error has become another one than EAGAIN.
 */
static bool begin_slice(ksmpy_engine *engine, struct patience *patience, int *error)
{
    bool begins = false, locked = scan_begin_slice(&engine->scanner, &begins);
    if (locked)
        *patience = (struct patience){0};
    if (locked && begins)
        begin_pass(engine);
    if (locked && scan_hear(&engine->scanner))
        return true;
    if (engine->pages.store.away)
        *error = wait_for_store(engine, patience);
    else
        pass_lets_others_in(engine);
    return false;
}

/*
 * Puts the frames of the run under way on huge pages.  Others have the lock meanwhile: they may end
 * the run, but only the pass gives its frames back.
 */
static void make_frames_huge(ksmpy_engine *engine)
{
    struct run *run = &engine->scanner.run;
    struct store *store = &engine->pages.store;
    uint32_t first = run->taken, n = run->taken_end - first;
    int error;
    engine_unlock(engine);
    uint64_t huge = extents_collapse(store, first, n, &error);
    engine_lock_for_pass(engine);
    extents_collapsed(store, first, n, huge, error);
    run->raw = false;
}

static int scan_until(ksmpy_engine *engine, uint64_t max_pages, bool eager)
{
    const struct ksmpy_scan_result *result = engine->merger.result;
    struct patience patience = {0};
    uint64_t passes = engine->pages.full_scans;
    int error = -EAGAIN;
    while (error == -EAGAIN && !stopped(engine)) {
        bool scans = result->scanned < max_pages && engine->pages.full_scans == passes;
        if (!scans && !scan_owes(&engine->scanner))
            break;
        if (!begin_slice(engine, &patience, &error))
            continue;
        if (scans)
            scan_slice(&engine->scanner, least(max_pages - result->scanned, SLICE_SCANNED), eager);
        else
            scan_settle_slice(&engine->scanner);
        if (engine->scanner.run.raw)
            make_frames_huge(engine);
        else
            pass_lets_others_in(engine);
    }
    scan_drop(&engine->scanner);
    return error == -EAGAIN ? engine->pages.store.broken : error;
}

int ksmpy_scan(ksmpy_engine *engine, uint64_t max_pages, int flags,
               struct ksmpy_scan_result *result)
{
    memset(result, 0, sizeof *result);
    if (engine->pages.forked)
        return -EPERM;
    if (engine->merger.fz.bystanders.matter)
        retries_lead(); /* holding nothing: see os/imports.h */
    sigset_t mask;
    pthread_mutex_lock(&engine->pass);
    engine_lock_for_pass(engine);
    guard_open(&mask);
    atomic_store(&engine->interrupted, false);
    engine->merger.result = result;
    engine->scanner.backs_off = flags & KSMPY_SCAN_BACK_OFF;
    int error = merger_has_files(&engine->merger) ? engine->pages.store.broken : -EBADF;
    if (!error)
        scan_end_left_over(&engine->scanner);
    if (flags & KSMPY_SCAN_PATIENT)
        bystanders_be_patient(&engine->merger.fz.bystanders, &engine->waiting);
    if (flags & KSMPY_SCAN_RESTART)
        scan_restart(&engine->scanner);
    if (!error)
        error = scan_until(engine, max_pages, flags & KSMPY_SCAN_EAGER);
    engine->merger.result = NULL;
    guard_close(&mask);
    engine_unlock(engine);
    pass_unlock(engine);
    check_step(engine);
    return error;
}
