/*
 * Processes on a store that have died: what they held is taken back, and nobody waits for them.
 */
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include "base/pages.h"
#include "check.h"
#include "os/files.h"
#include "os/lease.h"
#include "pair.h"
#include "store/announce.h"
#include "store/attach.h"
#include "store/board.h"
#include "store/children.h"
#include "store/extents.h"
#include "store/frames.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/pool.h"
#include "store/reap.h"
#include "store/slots.h"
#include "store/store.h"

enum { SUM = 12345 };

static void (*before_lease)(void); /* once: a free slot was found, and not locked yet */
int __real_os_lease_take(int lease_fd, uint64_t number, void **lease);
int __wrap_os_lease_take(int lease_fd, uint64_t number, void **lease)
{
    void (*chosen)(void) = before_lease;
    before_lease = NULL;
    if (chosen)
        chosen();
    return __real_os_lease_take(lease_fd, number, lease);
}

static int filler;

static bool open_small_pair(void)
{
    if (!open_mounted_pair("size=2m,mode=0700", &filler))
        return false;
    one.large_folios = two.large_folios =
        false; /* which such a mount might give, for all they know */
    return true;
}

static void fill_up(void)
{
    off_t at = (off_t)os_file_size(filler);
    while (fallocate(filler, 0, at, PAGE_SIZE) == 0)
        at += PAGE_SIZE;
}

static void what_the_dead_shared_is_taken_back(void)
{
    REQUIRE(open_pair());
    uint32_t both = shared_frame(&one, 1), alone = shared_frame(&one, 2), pinned = both;
    CHECK(store_join(&two, both, 1) == 1);
    store_pin(&one, pinned);
    unsigned slot = one.slot;
    die(&one);
    slots_reap(&two);
    store_flush(&two);
    CHECK(two.head->slots[slot].kind == SLOT_FREE && two.head->deaths == 1);
    CHECK(frame_at(&two, both)->sharers == 1 && frame_at(&two, both)->pins == 0);
    CHECK(state_of(&two, alone) == FRAME_FREE);
    tidy(&one);
    next_in_slot_counts_nothing(slot, both);
    store_leave(&two, both);
    close_all();
}

static void what_the_dead_was_making_is_freed(void)
{
    REQUIRE(open_pair());
    uint32_t filling = filled_frame(&one, 1), freeing = filled_frame(&one, 2);
    store_free(&one, freeing);
    CHECK(state_of(&two, filling) == FRAME_FILLING && state_of(&two, freeing) == FRAME_DEAD);
    die(&one);
    slots_reap(&two);
    store_flush(&two);
    CHECK(state_of(&two, filling) == FRAME_FREE && state_of(&two, freeing) == FRAME_FREE);
    tidy(&one);
    close_all();
}

/*
 * Nobody but the dead could have mapped it, whatever others hold: and to read it would be SIGBUS where
 * it has got no memory, and there is none left.
 */
static void what_the_dead_had_not_filled_is_not_read(void)
{
    for (int rebuilt = 0; rebuilt < 2; rebuilt++) {
        if (!open_small_pair())
            SKIP("no file system can be mounted here");
        uint64_t n = 64; /* more than a rebuild gives back meanwhile */
        uint32_t mine = shared_frame(&two, 1), frame = store_take(&one, 0, &n);
        CHECK(frame != NO_FRAME && n == 64);
        store_fork_prepare(&two); /* a child, which holds whatever it could have mapped */
        void *lease = two.taking;
        CHECK(lease && store_lock(&two));
        store_unlock(&two);
        fill_up();
        if (rebuilt)
            die_in_lock(&one);
        else
            die(&one);
        slots_reap(&two);
        CHECK(two.head->rebuilds == (uint64_t)rebuilt && two.head->deaths == 1);
        CHECK(state_of(&two, frame) == FRAME_DEAD && state_of(&two, frame + 63) == FRAME_DEAD);
        store_flush(&two);
        CHECK(state_of(&two, frame) == FRAME_FREE && store_bytes(&two) == bytes_of(1));
        os_lease_drop(lease);
        close(filler);
        tidy(&one);
        store_leave(&two, mine);
        store_reap(&two);
        close_all();
    }
}

static void a_newcomer_frees_what_the_dead_was_making(void)
{
    REQUIRE(open_pair());
    uint32_t filling = filled_frame(&one, 1);
    die(&one);
    struct store three;
    REQUIRE(attach(&three));
    CHECK(state_of(&two, filling) == FRAME_FREE);
    store_detach(&three);
    tidy(&one);
    close_all();
}

static void nobody_waits_with_the_dead(void)
{
    REQUIRE(open_pair());
    CHECK(announcement_add(&one, 0, SUM, true) == ANNOUNCED_NOWHERE);
    CHECK(store_lock(&two) && announcement_is_elsewhere(&two, 0, SUM));
    store_unlock(&two);
    die(&one);
    slots_reap(&two);
    CHECK(announcement_add(&two, 0, SUM, true) == ANNOUNCED_NOWHERE);
    tidy(&one);
    close_all();
}

static bool heard(uint64_t *read)
{
    struct event event;
    return events_read(&two, read, &event, 1) == 1 && event.sum == SUM;
}

/* Both stores are of one process, so each is the other's kin. */
static void a_page_left_by_fork_waits_for_what_becomes_of_it(void)
{
    REQUIRE(open_pair());
    uint64_t read = two.head->events;
    CHECK(announcement_add(&one, 0, SUM, false) == ANNOUNCED_NOWHERE);
    CHECK(announcement_add(&two, 0, SUM, false) == ANNOUNCED_BY_KIN);
    announcement_remove(&one, 0, SUM); /* it was written: the page is no longer the same */
    CHECK(heard(&read));
    CHECK(announcement_add(&one, 0, SUM, false) == ANNOUNCED_NOWHERE);
    announcement_remove(&one, 0, SUM); /* nobody waits for that one */
    CHECK(!heard(&read));
    CHECK(announcement_add(&one, 0, SUM, false) == ANNOUNCED_NOWHERE);
    CHECK(announcement_add(&two, 0, SUM, false) == ANNOUNCED_BY_KIN);
    die(&one);
    slots_reap(&two);
    CHECK(heard(&read));
    CHECK(announcement_add(&two, 0, SUM, false) == ANNOUNCED_NOWHERE);
    announcement_remove(&two, 0, SUM);
    tidy(&one);
    close_all();
}

static void a_page_of_ones_own_waits_for_no_kin(void)
{
    REQUIRE(open_pair());
    uint64_t read = two.head->events;
    CHECK(announcement_add(&one, 0, SUM, false) == ANNOUNCED_NOWHERE);
    CHECK(store_lock(&two) && announcement_is_elsewhere(&two, 0, SUM));
    store_unlock(&two);
    CHECK(announcement_add(&two, 0, SUM, true) == ANNOUNCED_ELSEWHERE);
    announcement_settle(&two, 0, SUM, false);
    CHECK(announcement_add(&two, 0, SUM, false) == ANNOUNCED_ELSEWHERE); /* anybody's */
    announcement_settle(&two, 0, SUM, true);
    two.head->slots[one.slot].kin++;
    CHECK(announcement_add(&one, 0, SUM, false) == ANNOUNCED_NOWHERE);
    CHECK(announcement_add(&two, 0, SUM, false) == ANNOUNCED_ELSEWHERE);
    announcement_settle(&two, 0, SUM, true);
    CHECK(!heard(&read));
    store_detach(&one);
    close_all();
}

/* Between the look at a slot and its lock somebody had it, and died in it. */
static void two_dies_in_the_slot(void)
{
    CHECK(attach(&two));
    die(&two);
}

static void a_slot_with_a_dead_one_in_it_is_not_taken(void)
{
    REQUIRE(open_file() && attach(&one));
    unsigned slot;
    void *lease;
    before_lease = two_dies_in_the_slot;
    CHECK(slot_claim(&one, SLOT_ENGINE, &slot, &lease) == 0);
    CHECK(slot != two.slot && one.head->slots[two.slot].kind == SLOT_ENGINE);
    CHECK(!slot_is_held(&one, two.slot) && slot_is_held(&one, slot));
    os_lease_drop(lease);
    slots_reap(&one);
    CHECK(one.head->slots[two.slot].kind == SLOT_FREE && one.head->slots[slot].kind == SLOT_FREE);
    tidy(&two);
    REQUIRE(attach(&two));
    store_detach(&one);
    close_all();
}

int main(void)
{
    RUN(what_the_dead_shared_is_taken_back);
    RUN(what_the_dead_was_making_is_freed);
    RUN(what_the_dead_had_not_filled_is_not_read);
    RUN(a_newcomer_frees_what_the_dead_was_making);
    RUN(nobody_waits_with_the_dead);
    RUN(a_page_left_by_fork_waits_for_what_becomes_of_it);
    RUN(a_page_of_ones_own_waits_for_no_kin);
    RUN(a_slot_with_a_dead_one_in_it_is_not_taken);
    return finish();
}
