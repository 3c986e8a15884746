/*
 * Whoever had the lock of a store died with it: the next one makes the index anew.
 */
#include <errno.h>
#include <string.h>

#include "base/pages.h"
#include "check.h"
#include "holes.h"
#include "os/arena.h"
#include "os/lease.h"
#include "os/probe.h"
#include "pair.h"
#include "store/attach.h"
#include "store/collapse.h"
#include "store/extents.h"
#include "store/frames.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/pool.h"
#include "store/reap.h"
#include "store/sharers.h"
#include "store/slots.h"
#include "store/store.h"

/* Records for which memory was asked, and how many there were to be by the mark then. */
static uint64_t records_asked_for, high_when_asked;
static bool no_records; /* there is no memory for more */
static void note_records(uint64_t offset, uint64_t end)
{
    const struct arena *records = &two.records[0];
    if (offset < records->offset || end > records->offset + records->limit * records->stride)
        return;
    uint64_t asked = (end - records->offset) / records->stride;
    if (asked > records_asked_for)
        records_asked_for = asked;
    high_when_asked = two.head->node[0].ids.high;
}

int __real_os_allocate(int fd, uint64_t offset, uint64_t bytes);
int __wrap_os_allocate(int fd, uint64_t offset, uint64_t bytes)
{
    uint64_t before = records_asked_for;
    if (two.head)
        note_records(offset, offset + bytes);
    return no_records && records_asked_for > before ? -ENOSPC
                                                    : __real_os_allocate(fd, offset, bytes);
}

static uint64_t unreadable; /* an offset in the file; 0: all of it can be read */
int __real_os_pread(int fd, uint64_t offset, void *to, size_t bytes);
int __wrap_os_pread(int fd, uint64_t offset, void *to, size_t bytes)
{
    bool meets = offset <= unreadable && unreadable < offset + bytes;
    return unreadable && meets ? -EIO : __real_os_pread(fd, offset, to, bytes);
}

static bool all_are_holes; /* as a page looks for a moment that the kernel moves */
off_t __real_lseek(int fd, off_t offset, int whence);
off_t __wrap_lseek(int fd, off_t offset, int whence)
{
    if (all_are_holes)
        errno = ENXIO;
    return all_are_holes ? -1 : __real_lseek(fd, offset, whence);
}

static void an_index_whose_owner_died_is_made_anew(void)
{
    REQUIRE(open_pair());
    uint32_t both = shared_frame(&one, 1), alone = shared_frame(&one, 2);
    uint32_t before = filled_frame(&one, 3), mine = shared_frame(&two, 4);
    unsigned slot = one.slot, child = two.slot + 1;
    void *lease;
    CHECK(os_lease_take(two.lock_fd, 1 + child, &lease) == 0);
    two.head->slots_end = child + 1;
    two.head->slots[child].kind = SLOT_CHILD;
    two.head->slots[child].fork = two.head->forks = 1;
    uint32_t after = filled_frame(&one, 5);
    CHECK(store_join(&two, both, 1) == 1);
    frame_at(&one, both)->sum ^= 1;
    die_in_lock(&one);
    CHECK(store_lock(&two));
    CHECK(two.head->rebuilds == 1 && two.head->deaths == 1);
    CHECK(two.head->live_frames == 3 && two.head->stale_frames == 1);
    CHECK(frame_at(&two, both)->sharers == 1 && frame_at(&two, mine)->sharers == 1);
    CHECK(frame_at(&two, both)->sum == store_sum(&two, frame_bytes(&two, both)));
    CHECK(state_of(&two, alone) == FRAME_LIVE && state_of(&two, after) == FRAME_DEAD);
    CHECK(state_of(&two, before) == FRAME_DEAD); /* nobody has mapped that one */
    store_unlock(&two);
    store_reap(&two); /* the child may map what the dead one had mapped when it came */
    CHECK(state_of(&two, alone) == FRAME_LIVE && state_of(&two, before) == FRAME_FREE);
    CHECK(state_of(&two, after) == FRAME_FREE);
    os_lease_drop(lease);
    store_reap(&two);
    CHECK(state_of(&two, alone) == FRAME_FREE);
    tidy(&one);
    next_in_slot_counts_nothing(slot, both);
    store_leave(&two, both);
    store_leave(&two, mine);
    close_all();
}

/*
 * Frames of an extent begin at its start, so that some records before it may be passed over, and no
 * byte of them is written: their memory is a hole by the file's word.
 */
static void frames_behind_records_that_nobody_has_touched_stay(void)
{
    REQUIRE(open_pair());
    uint32_t before = shared_frame(&two, 1);
    uint64_t n = EXTENT, at = two.records[0].offset, end = at;
    CHECK(store_lock(&two));
    uint32_t first = pool_take_extents(&two, 0, &n);
    store_unlock(&two);
    CHECK(first == EXTENT && n == EXTENT);
    CHECK(next_data(file, &at, &end) && end < two.records[0].offset + first * sizeof(struct frame));
    static const uint8_t page[PAGE_SIZE] = {2};
    CHECK(store_fill(&two, first, page, 1) == 1);
    publish(&two, first);
    die_in_lock(&one);
    CHECK(store_lock(&two) && two.head->rebuilds == 1);
    CHECK(frame_is_live(&two, first) && frame_at(&two, first)->sharers == 1);
    CHECK(two.head->live_frames == 2 && store_bytes(&two) == bytes_of(1 + EXTENT));
    store_unlock(&two);
    tidy(&one);
    store_leave(&two, before);
    store_leave(&two, first);
    close_all();
}

/* Whoever dies may do so before there is memory. */
static void ids_are_known_once_there_are_records_for_them(void)
{
    REQUIRE(open_pair());
    uint64_t many = 3 * EXTENT, some = 3 * EXTENT;
    for (int round = 0; round < 3; round++) {
        uint64_t high = two.head->node[0].ids.high;
        records_asked_for = high_when_asked = 0;
        CHECK(store_lock(&two));
        if (round == 0)
            CHECK(pool_take(&two, 0, &many) == 0);
        else if (round == 1)
            CHECK(pool_take_extents(&two, 0, &some) == 3 * EXTENT);
        else
            CHECK(pool_reaches(&two, 7 * EXTENT));
        store_unlock(&two);
        CHECK(records_asked_for >= two.head->node[0].ids.high && high_when_asked == high);
    }
    no_records = true;
    uint64_t n = 8 * EXTENT, high = two.head->node[0].ids.high;
    CHECK(store_lock(&two) && pool_take(&two, 0, &n) == 6 * EXTENT && n == 2 * EXTENT);
    CHECK(two.head->node[0].ids.high == high); /* those that were there: of more there is none */
    no_records = false;
    store_unlock(&two);
    store_give_back(&two, 0, 8 * EXTENT);
    store_detach(&one);
    close_all();
}

/* Nobody takes a frame, or is told anything, before somebody has made all of the index anew. */
static void an_index_is_made_anew_as_a_whole(void)
{
    struct store three;
    REQUIRE(open_pair() && store_attach(&three, file, 1, NULL) == 0);
    uint32_t frame = shared_frame(&two, 1);
    uint64_t n = 1, counts = counts_offset(&two, two.slot);
    two.ids[0].limit = 5 * EXTENT;
    two.head->node[0].ids.high = 7 * EXTENT; /* somebody has written over it */
    die_in_lock(&one);
    records_asked_for = 0;
    no_records = true;
    CHECK(!store_lock(&two) && two.broken == -ENOSPC && two.head->half_changed);
    CHECK(store_take(&two, 0, &n) == NO_FRAME);
    no_records = false;
    two.broken = 0; /* as in another process */
    unreadable = counts;
    CHECK(!store_lock(&two) && two.broken == -EIO && two.head->half_changed);
    unreadable = two.broken = 0;
    records_asked_for = 0;
    two.records[0].committed = 0;
    CHECK(store_lock(&two) && two.head->rebuilds == 1 && !two.head->half_changed);
    CHECK(two.head->node[0].ids.high == 5 * EXTENT && records_asked_for >= 5 * EXTENT);
    CHECK(frame_is_live(&two, frame) && frame_at(&two, frame)->sharers == 1);
    store_unlock(&two);
    unsigned slot = three.slot; /* what cannot be taken back is not forgotten */
    CHECK(store_join(&three, frame, 1) == 1 && frame_at(&two, frame)->sharers == 2);
    die(&three);
    unreadable = counts_offset(&two, slot);
    slots_reap(&two);
    unreadable = 0;
    CHECK(two.head->slots[slot].kind == SLOT_ENGINE && two.head->half_changed);
    CHECK(store_lock(&two) && two.head->rebuilds == 2 && two.head->slots[slot].kind == SLOT_FREE);
    CHECK(frame_at(&two, frame)->sharers == 1);
    store_unlock(&two);
    tidy(&one);
    tidy(&three);
    store_leave(&two, frame);
    close_all();
}

static void counts_are_found_while_the_kernel_moves_them(void)
{
    REQUIRE(open_pair());
    uint32_t frame = shared_frame(&one, 1);
    CHECK(store_join(&two, frame, 1) == 1);
    all_are_holes = true;
    die_in_lock(&one);
    CHECK(store_lock(&two) && two.head->rebuilds == 1 && frame_at(&two, frame)->sharers == 1);
    store_unlock(&two);
    tidy(&one);
    REQUIRE(attach(&one) && store_join(&one, frame, 1) == 1);
    die(&one);
    slots_reap(&two);
    CHECK(frame_at(&two, frame)->sharers == 1);
    all_are_holes = false;
    tidy(&one);
    store_leave(&two, frame);
    close_all();
}

/* Spare frames stay so, and those that the dead had in two whole extents are given back as wholes. */
static void extents_outlast_those_who_made_them(void)
{
    uint64_t n = 2 * EXTENT;
    bool extents;
    int error;
    static uint8_t bytes[EXTENT * PAGE_SIZE];
    if (os_try_huge_file() < 0)
        SKIP("no huge pages for files in memory");
    REQUIRE(open_pair());
    uint32_t first = store_take_in_step(&one, 0, 0, &n, &extents);
    uint64_t huge = extents_collapse(&one, first, n, &error);
    extents_collapsed(&one, first, n, huge, error);
    REQUIRE(extents && !error);
    memset(bytes, 7, sizeof bytes / 2); /* and zeros */
    CHECK(store_fill(&one, first, bytes, EXTENT) == EXTENT);
    CHECK(store_fill(&one, first + EXTENT, bytes, EXTENT) == EXTENT);
    uint32_t mine = first + EXTENT + 9;
    CHECK(store_join(&one, mine, 1) == 1 && store_lock(&one));
    frame_at(&one, mine)->sum = store_sum(&one, frame_bytes(&one, mine));
    store_publish(&one, mine, 0);
    store_unlock(&one);
    CHECK(store_join(&two, mine, 1) == 1);
    store_give_back(&one, first + 3, 10);
    store_flush(&one);
    store_give_back(&one, first + 100, 5);
    CHECK(state_of(&two, first + 3) == FRAME_SPARE && state_of(&two, first + 100) == FRAME_DEAD);
    one.head->spare_frames = one.head->torn_spare_frames = one.head->huge_extents = 77;
    die_in_lock(&one);
    CHECK(store_lock(&two));
    CHECK(two.head->rebuilds == 1 && two.head->huge_extents == 2);
    CHECK(two.head->spare_frames == 10 && two.head->torn_spare_frames == 0);
    CHECK(state_of(&two, first + 3) == FRAME_SPARE && state_of(&two, first + 100) == FRAME_DEAD);
    store_unlock(&two);
    store_flush(&two);
    CHECK(state_of(&two, first) == FRAME_FREE && state_of(&two, first + 3) == FRAME_FREE);
    CHECK(!is_on_large_folio(&two, first) && is_on_large_folio(&two, mine));
    CHECK(two.head->huge_extents == 0 && two.head->spare_frames == 0); /* one is torn */
    CHECK(store_bytes(&two) == bytes_of(1));
    CHECK(!memcmp(two.memory + bytes_of(mine), bytes + bytes_of(9), PAGE_SIZE));
    tidy(&one);
    store_leave(&two, mine);
    close_all();
}

int main(void)
{
    RUN(an_index_whose_owner_died_is_made_anew);
    RUN(frames_behind_records_that_nobody_has_touched_stay);
    RUN(ids_are_known_once_there_are_records_for_them);
    RUN(an_index_is_made_anew_as_a_whole);
    RUN(counts_are_found_while_the_kernel_moves_them);
    RUN(extents_outlast_those_who_made_them);
    return finish();
}
