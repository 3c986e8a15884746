#include "store/spare.h"

#include <string.h>

#include "base/pages.h"
#include "os/arena.h"
#include "os/clock.h"
#include "store/extents.h"
#include "store/files.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/pool.h"
#include "store/punch.h"
#include "store/references.h"
#include "store/store.h"

/* Frames of one extent that are DEAD and ours: the first ones had been spare, the others free. */
struct taken {
    uint32_t frames[EXTENT];
    uint64_t spare, n;
};

/* Its last frames may never have been used, and may be taken by others: then they are ours first. */
static bool is_over(struct store *store, uint32_t extent)
{
    return !extent_used(store, extent) && pool_reaches(store, extent);
}

/* Up to where its frames have records: there may be no memory for those of the last ones. */
static uint32_t records_end(const struct store *store, uint32_t extent)
{
    uint64_t high = store->ids[frame_node(store, extent)].state->high;
    return extent + (uint32_t)least(high - frame_local(store, extent), EXTENT);
}

/*
 * A process that dies here leaves all of them to the one that reaps it.  Then they are spare, also
 * those without memory.
 */
static void take(struct store *store, uint32_t extent, bool free_ones, struct taken *taken)
{
    uint32_t end = records_end(store, extent);
    taken->n = 0;
    for (uint32_t frame = extent; frame < end; frame++)
        if (frame_at(store, frame)->state == FRAME_SPARE && taken->n < EXTENT) {
            frame_is_dead(store, frame);
            frame_is_spare_no_more(store, frame);
            taken->frames[taken->n++] = frame;
        }
    taken->spare = taken->n;
    for (uint32_t frame = extent; free_ones && frame < end; frame++)
        if (frame_at(store, frame)->state == FRAME_FREE && taken->n < EXTENT &&
            pool_take_this(store, frame)) {
            frame_is_dead(store, frame);
            taken->frames[taken->n++] = frame;
        }
}

/* Punches what it can; the rest is left to the next flush.  false: that is all of it. */
static bool punch(struct store *store, uint32_t *frames, uint64_t n)
{
    uint64_t done = punch_frames(store, frames, n);
    for (uint64_t i = done; i < n; i++)
        pool_leave_to_flush(store, frames[i]);
    return done;
}

/* What was free may have got memory, which nobody has referred to. */
static void put_back(struct store *store, struct taken *taken)
{
    bool locked = store_lock(store);
    for (uint64_t i = 0; i < taken->spare; i++)
        if (locked)
            frame_becomes_spare(store, taken->frames[i]);
        else
            pool_leave_to_flush(store, taken->frames[i]);
    if (locked)
        store_unlock(store);
    punch(store, taken->frames + taken->spare, taken->n - taken->spare);
}

static uint64_t same_extent(const uint32_t *frames, uint64_t n)
{
    uint64_t length = 1;
    while (length < n && extent_of(frames[length]) == extent_of(frames[0]))
        length++;
    return length;
}

/*
 * Makes n frames of an extent spare.  The last ones in use take all of it along, which is punched as a
 * whole; *ended tells.  false: no lock.
 */
static bool keep(struct store *store, uint32_t extent, const uint32_t *frames, uint64_t n,
                 bool *ended)
{
    struct taken all;
    *ended = false;
    if (!store_lock(store))
        return false;
    for (uint64_t i = 0; i < n; i++)
        frame_becomes_spare(store, frames[i]);
    bool over = extent_spare(store, extent) && is_over(store, extent);
    if (over)
        take(store, extent, true, &all);
    store_unlock(store);
    *ended = over && all.n == EXTENT;
    if (*ended)
        punch(store, all.frames, all.n);
    else if (over)
        put_back(store, &all);
    return true;
}

uint64_t spare_dead_frames(struct store *store)
{
    uint32_t *dead = (uint32_t *)(void *)store->dead.base;
    uint64_t count = store->dead_count, kept = 0, at = 0, n = 0;
    bool ended;
    sort_frames(dead, count);
    for (; at < count; at += n) {
        n = same_extent(dead + at, count - at);
        if (!is_on_large_folio(store, dead[at])) {
            memmove(dead + kept, dead + at, n * sizeof *dead);
            kept += n;
        } else if (!keep(store, extent_of(dead[at]), dead + at, n, &ended)) {
            break;
        }
    }
    memmove(dead + kept, dead + at, (store->dead_count - at) * sizeof *dead);
    store->dead_count -= at - kept;
    return kept;
}

/* ---- letting extents go ---- */

#define MANY (EXTENT / 8) /* spare frames: those of a torn extent are worth 0.2 to 5 ms of proof */
#define FUTILE 8 /* extents that could not be let go, at which it ends */
#define REST_MS 100 /* after a round in which nothing was let go */
#define ROUND_MS 4 /* for which a round goes on, with the engine's lock in hand */
#define SCARCE_MS 50 /* where memory is scarce */
#define STEP 1024 /* extents that are looked at before the lock is given back */

struct round {
    uint64_t down_to; /* frames */
    uint64_t end_ms;
    bool many; /* extents with many spare frames come first */
    unsigned futile, done;
    bool collapsed; /* one in a round */
};

static bool is_finished(const struct store *store, const struct round *round)
{
    return store->head->spare_frames <= round->down_to || round->futile == FUTILE ||
           os_now_ms() > round->end_ms;
}

static bool may_go(const struct store *store, uint32_t extent, const struct round *round)
{
    uint64_t spare = extent_spare(store, extent);
    if (!spare || (spare >= MANY) != round->many)
        return false;
    return is_on_huge_page(store, extent) || !extent_used(store, extent) ||
           (round->many && !round->collapsed);
}

/* The files are looked at again, as a proof takes long. */
static bool tear(struct store *store, uint32_t extent)
{
    if (!store_has_files(store) || !store_lock(store))
        return false;
    extent_is_torn(store, extent);
    store_unlock(store);
    return true;
}

/*
 * A torn extent is filled while it is proven, so what is free is taken for so long, and punched again.
 * Whoever frees the last frames meanwhile finds the taken ones in use: so it is seen to here that the
 * extent ends.
 */
static bool let_go(struct store *store, uint32_t extent, struct round *round)
{
    struct taken taken;
    if (!store_has_files(store) || !store_lock(store))
        return false;
    bool over = is_over(store, extent), huge = is_on_huge_page(store, extent);
    bool whole = over || (!huge && pool_reaches(store, extent));
    take(store, extent, whole, &taken);
    store_unlock(store);
    bool proven = over && taken.n == EXTENT;
    if (!proven && taken.spare && (huge || whole)) {
        round->collapsed |= !huge;
        proven = frames_are_unreferenced(store, taken.frames, taken.n) && tear(store, extent);
    }
    bool done = proven && punch(store, taken.frames, taken.n), ended;
    if (!proven)
        put_back(store, &taken);
    return (keep(store, extent, NULL, 0, &ended) && ended) || done;
}

/*
 * The next one that may go, from where the last one was; *left: how many are still to be looked at.
 * NO_FRAME: there is none, or not among so many, or the lock is not to be had (*left is 0 then).
 */
static uint32_t next_to_go(struct store *store, const struct round *round, uint64_t *left)
{
    uint32_t found = NO_FRAME;
    if (!store_lock(store)) {
        *left = 0;
        return NO_FRAME;
    }
    uint64_t count = extents_known(store);
    *left = least(*left, count);
    for (uint64_t i = 0; *left && i < STEP && found == NO_FRAME; i++, --*left) {
        uint32_t extent = extent_at(store, store->letting_go_at++ % count);
        found = may_go(store, extent, round) ? extent : NO_FRAME;
    }
    store_unlock(store);
    return found;
}

/*
 * Each begins where the last one has ended, as it may be for ever that an extent cannot be let go: where
 * no byte of it is zero, say.
 */
static void let_some_go(struct store *store, struct round *round)
{
    round->futile = 0;
    for (uint64_t left = UINT64_MAX; left && !is_finished(store, round);) {
        uint32_t extent = next_to_go(store, round, &left);
        if (extent == NO_FRAME)
            continue;
        bool done = let_go(store, extent, round);
        round->done += done;
        round->futile += !done;
    }
}

void spare_at_most(struct store *store, uint64_t frames)
{
    uint64_t now = os_now_ms();
    if (frames && now < store->letting_go_ms)
        return;
    struct round round = {
        .down_to = frames, .end_ms = now + (frames ? ROUND_MS : SCARCE_MS), .many = true};
    let_some_go(store, &round);
    round.many = false;
    let_some_go(store, &round);
    if (store->head->spare_frames > frames && !round.done)
        store->letting_go_ms = os_now_ms() + REST_MS;
}
