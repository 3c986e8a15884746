/* An engine's locks, and who goes ahead of whom; their order is in engine/engine.h. */
#ifndef KSMPY_ENGINE_LOCKS_H
#define KSMPY_ENGINE_LOCKS_H

#include "base/pages.h"
#include "engine/engine.h"

void engine_lock(ksmpy_engine *engine); /* ahead of a pass under way */
void engine_unlock(ksmpy_engine *engine);
/* Between two slices of what takes long: whoever wants the lock (fork, a dying owner) has it. */
void engine_let_others_in(ksmpy_engine *engine);
/*
 * Between two slices of what a thread waits for: the same where *deadline has passed, which is set
 * to the end of the next slice then, but a pass goes on waiting.
 */
void engine_end_slice(ksmpy_engine *engine, uint64_t *deadline);
/*
 * Between two slices of what is counted for stats(): who wants the lock for a moment has it, but who
 * goes on with something long has it after every fourth slice only.  Beside an unmerge the counting
 * would else take as many of its slices as it has of its own.
 */
struct counting {
    uint64_t slice_end_ns; /* of the slice under way */
    unsigned slices; /* that are over */
};
void engine_end_count(ksmpy_engine *engine, struct counting *counting);
/* Between two slices of a pass, and at its start. */
void engine_lock_for_pass(ksmpy_engine *engine);
void pass_lets_others_in(ksmpy_engine *engine);
/* For the budget; others have the lock meanwhile. */
void engine_count_mappings(ksmpy_engine *engine);
/*
 * With the store's lock too, after a wait that nobody has to take part in.  -EPERM in a child that
 * inherited the engine; -ETIMEDOUT: another process keeps the store locked.
 */
KSMPY_MAY_REFUSE int engine_lock_with_store(ksmpy_engine *engine);
/* The same without that wait.  -EAGAIN: another process has the store's lock. */
KSMPY_MAY_REFUSE int engine_try_lock_with_store(ksmpy_engine *engine);
/* Of the store's lock alone, by who has the engine's. */
KSMPY_MAY_REFUSE int engine_try_lock_store(ksmpy_engine *engine);
void engine_unlock_with_store(ksmpy_engine *engine);
void pass_lock(ksmpy_engine *engine); /* a pass under way ends at its next slice */
void pass_unlock(ksmpy_engine *engine);

#endif
