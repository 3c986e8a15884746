/*
 * Who uses a store, and what becomes of the dead: stores without engines, all of them in one
 * process.  To die is to lose one's lease, as the kernel takes it from whoever ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/checksum.h"
#include "base/pages.h"
#include "check.h"
#include "holes.h"
#include "ksmpy.h"
#include "os/arena.h"
#include "os/clock.h"
#include "os/files.h"
#include "os/lease.h"
#include "os/map.h"
#include "os/probe.h"
#include "store/announce.h"
#include "store/attach.h"
#include "store/board.h"
#include "store/check.h"
#include "store/children.h"
#include "store/collapse.h"
#include "store/extents.h"
#include "store/files.h"
#include "store/frames.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/mapping.h"
#include "store/pool.h"
#include "store/reap.h"
#include "store/sharers.h"
#include "store/slots.h"
#include "store/store.h"

enum { SUM = 12345 };

static int file;
static struct store one, two;

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

/* The most bytes of the file that were asked for, or given back, at once with the lock held. */
static uint64_t most_at_once;
static void note_bytes(uint64_t bytes)
{
    if ((one.depth || two.depth) && bytes > most_at_once)
        most_at_once = bytes;
}

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
    note_bytes(bytes);
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

static bool no_holes;
int __real_os_punch(int fd, uint64_t offset, uint64_t bytes);
int __wrap_os_punch(int fd, uint64_t offset, uint64_t bytes)
{
    note_bytes(bytes);
    return no_holes ? -ENOMEM : __real_os_punch(fd, offset, bytes);
}

static uint64_t stopped_clock; /* what the clock says all the time; 0: it goes */
static unsigned clock_calls;
uint64_t __real_os_now_ns(void);
uint64_t __wrap_os_now_ns(void)
{
    clock_calls++;
    return stopped_clock ? stopped_clock : __real_os_now_ns();
}

static void (*while_waiting)(void); /* once: the lock was tried, and whoever wants it backs off */
void __real_os_back_off(unsigned looks);
void __wrap_os_back_off(unsigned looks)
{
    void (*chosen)(void) = while_waiting;
    while_waiting = NULL;
    if (chosen)
        chosen();
    __real_os_back_off(looks);
}

static bool attach(struct store *store)
{
    return store_attach(store, file, 1, NULL) == 0;
}

static bool open_file(void)
{
    file = os_memfd("ksmpy-store", 0);
    return file >= 0;
}

static bool open_pair(void)
{
    return open_file() && attach(&one) && attach(&two);
}

static int filler; /* a file beside the store, on a file system that has a size of its own */

/* As open_pair(), there.  false: it cannot be mounted here. */
static bool open_small_pair(void)
{
    char place[] = "/tmp/ksmpy-small-XXXXXX";
    if (!mkdtemp(place))
        return false;
    bool mounted = mount("tmpfs", place, "tmpfs", 0, "size=2m,mode=0700") == 0;
    if (mounted) {
        file = open(place, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        filler = open(place, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        umount2(place, MNT_DETACH); /* it is there for as long as a file of it is open */
    }
    rmdir(place);
    if (!mounted || file < 0 || filler < 0 || !attach(&one) || !attach(&two))
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

static void close_all(void)
{
    CHECK(store_lock(&two) && store_check(&two) == 0);
    store_unlock(&two);
    store_detach(&two);
    close(file);
}

/* Its descriptors stay, as nobody asks for them. */
static void die(struct store *store)
{
    os_lease_drop(store->lease);
}

static void tidy(struct store *dead)
{
    store_unmap(dead);
    store_close_files(dead);
}

/* A frame that is filled with such bytes, and nobody shares. */
static uint32_t filled_frame(struct store *store, uint8_t byte)
{
    static uint8_t page[1 << PAGE_SHIFT];
    uint64_t n = 1;
    uint32_t frame = store_take(store, 0, &n);
    memset(page, byte, sizeof page);
    CHECK(frame != NO_FRAME && store_fill(store, frame, page, 1) == 1);
    return frame;
}

/* A filled one is live from then on, with one sharer. */
static void publish(struct store *store, uint32_t frame)
{
    CHECK(store_join(store, frame, 1) == 1);
    frame_at(store, frame)->sum = cut_sum(checksum_of(frame_bytes(store, frame), PAGE_SIZE));
    CHECK(store_lock(store));
    store_publish(store, frame, 0);
    store_unlock(store);
}

static uint32_t shared_frame(struct store *store, uint8_t byte)
{
    uint32_t frame = filled_frame(store, byte);
    publish(store, frame);
    return frame;
}

static int state_of(const struct store *store, uint32_t frame)
{
    return frame_at(store, frame)->state;
}

/* ---- the dead ---- */

static void *die_with_the_lock(void *store)
{
    CHECK(store_lock(store));
    ((struct store *)store)->head->live_frames = 4711;
    ((struct store *)store)->head->stale_frames = 4712;
    return NULL;
}

static void die_in_lock(struct store *store)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, die_with_the_lock, store) == 0);
    pthread_join(thread, NULL);
    die(store);
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
    REQUIRE(attach(&one)); /* nothing is counted for whoever has that slot next */
    CHECK(one.slot == slot);
    die(&one);
    slots_reap(&two);
    CHECK(frame_at(&two, both)->sharers == 1);
    tidy(&one);
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

/* ---- descriptors that are another file's ---- */

static void a_slot_is_not_claimed_in_another_file(void)
{
    REQUIRE(open_pair());
    int kept = fcntl(one.lock_fd, F_DUPFD_CLOEXEC, 0), other = os_memfd("other", PAGE_SIZE);
    unsigned slot;
    void *lease;
    REQUIRE(kept >= 0 && dup2(other, one.lock_fd) == one.lock_fd);
    CHECK(slot_claim(&one, SLOT_ENGINE, &slot, &lease) == -EBADF);
    REQUIRE(dup2(kept, one.lock_fd) == one.lock_fd);
    close(kept);
    close(other);
    store_detach(&one);
    close_all();
}

/* Nor is a hole punched into it. */
static void who_leaves_changes_no_other_file(void)
{
    REQUIRE(open_pair());
    uint64_t at = counts_offset(&one, one.slot), seen = 0;
    const uint64_t mark = 0x5eed;
    int other = os_memfd("other", 0);
    REQUIRE(other >= 0 && os_set_size(other, at + counts_bytes(&one)) == 0);
    REQUIRE(pwrite(other, &mark, sizeof mark, (off_t)at) == sizeof mark);
    int number = one.lock_fd;
    REQUIRE(dup2(other, number) == number);
    store_detach(&one);
    CHECK(os_pread(other, at, &seen, sizeof seen) == 0 && seen == mark);
    CHECK(fcntl(number, F_GETFD) >= 0); /* it is not ours to close */
    close(number);
    close(other);
    close_all();
}

static void freed_frames_leave_no_hole_in_another_file(void)
{
    REQUIRE(open_pair());
    uint32_t frame = filled_frame(&one, 1);
    const uint64_t mark = 0x5eed;
    uint64_t at = frame_offset(&one, frame), seen = 0;
    int kept = fcntl(one.write_fd, F_DUPFD_CLOEXEC, 0), other = os_memfd("other", 0);
    REQUIRE(kept >= 0 && other >= 0 && os_set_size(other, at + PAGE_SIZE) == 0);
    REQUIRE(pwrite(other, &mark, sizeof mark, (off_t)at) == sizeof mark);
    store_give_back(&one, frame, 1);
    REQUIRE(dup2(other, one.write_fd) == one.write_fd);
    store_flush(&one);
    CHECK(os_pread(other, at, &seen, sizeof seen) == 0 && seen == mark);
    CHECK(state_of(&one, frame) == FRAME_DEAD);
    REQUIRE(dup2(kept, one.write_fd) == one.write_fd);
    store_flush(&one);
    CHECK(state_of(&one, frame) == FRAME_FREE);
    close(kept);
    close(other);
    store_detach(&one);
    close_all();
}

/* The memory for the larger table was asked for while the file was still the store's. */
static void an_outgrown_table_leaves_no_hole_in_another_file(void)
{
    REQUIRE(open_pair());
    uint64_t size = one.head->announced_size, i = 0, seen = 0;
    const uint64_t mark = 0x5eed, at = one.announcements.offset + size * sizeof(uint64_t);
    for (; !one.larger.size; i++)
        announcement_add(&one, 0, i * 2654435761u, true);
    int kept = fcntl(one.write_fd, F_DUPFD_CLOEXEC, 0), other = os_memfd("other", 0);
    REQUIRE(kept >= 0 && other >= 0 && os_set_size(other, 2 * at) == 0);
    REQUIRE(pwrite(other, &mark, sizeof mark, (off_t)at) == sizeof mark);
    REQUIRE(dup2(other, one.write_fd) == one.write_fd);
    for (; one.head->announced_size == size; i++)
        announcement_add(&one, 0, i * 2654435761u, true);
    CHECK(os_pread(other, at, &seen, sizeof seen) == 0 && seen == mark);
    REQUIRE(dup2(kept, one.write_fd) == one.write_fd);
    close(kept);
    close(other);
    store_detach(&one);
    close_all();
}

/* ---- frames ---- */

/* Its memory is given back at another time. */
static void a_frame_that_keeps_its_memory_is_not_free(void)
{
    REQUIRE(open_pair());
    uint32_t frame = filled_frame(&one, 1);
    store_give_back(&one, frame, 1);
    no_holes = true;
    store_flush(&one);
    CHECK(state_of(&one, frame) == FRAME_DEAD);
    no_holes = false;
    store_flush(&one);
    CHECK(state_of(&one, frame) == FRAME_FREE);
    store_detach(&one);
    close_all();
}

static void a_frame_in_the_making_is_its_makers(void)
{
    REQUIRE(open_pair());
    uint32_t frame = filled_frame(&one, 1);
    CHECK(store_join(&two, frame, 1) == -ESTALE);
    store_give_back(&one, frame, 1);
    store_detach(&one);
    close_all();
}

static void others_hear_of_a_frame_with_room_again(void)
{
    REQUIRE(open_pair());
    struct event event;
    one.head->knobs[KSMPY_KNOB_MAX_PAGE_SHARING] = 2;
    uint32_t frame = shared_frame(&one, 1);
    CHECK(store_join(&one, frame, 1) == 1);
    uint64_t read = two.head->events;
    store_leave(&one, frame);
    CHECK(events_read(&two, &read, &event, 1) == 1 && event.sum == frame_at(&one, frame)->sum);
    store_leave(&one, frame);
    store_detach(&one);
    close_all();
}

/* ---- making the index anew ---- */

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
    REQUIRE(attach(&one)); /* nothing is counted for whoever has that slot next */
    CHECK(one.slot == slot);
    die(&one);
    slots_reap(&two);
    CHECK(frame_at(&two, both)->sharers == 1);
    tidy(&one);
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

static pthread_t holder;
static int let_go[2];

/* The lock of two, until there is something to read. */
static void *hold(void *taken)
{
    char byte;
    CHECK(store_lock(&two));
    atomic_store((_Atomic bool *)taken, true);
    CHECK(read(let_go[0], &byte, 1) == 1);
    store_unlock(&two);
    return NULL;
}

static bool others_hold_the_lock(void)
{
    static _Atomic bool taken;
    atomic_store(&taken, false);
    if (pipe(let_go) < 0 || pthread_create(&holder, NULL, hold, (void *)&taken) != 0)
        return false;
    while (!atomic_load(&taken))
        os_sleep_us(100);
    return true;
}

static void they_let_go(void)
{
    CHECK(write(let_go[1], "", 1) == 1);
    pthread_join(holder, NULL);
    close(let_go[0]);
    close(let_go[1]);
}

/* Whoever wants the lock sleeps until it is free; if that takes too long he does without at once. */
static void a_lock_is_waited_for_once(void)
{
    REQUIRE(open_pair() && others_hold_the_lock());
    while_waiting = they_let_go;
    stopped_clock = __real_os_now_ns(); /* however slow the machine is */
    CHECK(store_lock(&one) && !while_waiting);
    stopped_clock = 0;
    store_unlock(&one);
    REQUIRE(others_hold_the_lock());
    clock_calls = 0;
    CHECK(!store_lock(&one) && clock_calls); /* it waits by the clock */
    clock_calls = 0;
    CHECK(!store_lock(&one) && !store_lock(&one) && !clock_calls);
    they_let_go();
    CHECK(store_lock(&one));
    store_unlock(&one);
    REQUIRE(others_hold_the_lock());
    clock_calls = 0;
    CHECK(!store_lock(&one) && clock_calls); /* there is patience again */
    they_let_go();
    store_detach(&one);
    close_all();
}

/* To give back what nobody has taken is a mistake that checked builds end at, and others survive. */
static void a_lock_is_given_back_once(void)
{
    int status;
    REQUIRE(open_pair());
    CHECK(store_lock(&one));
    store_unlock(&one);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        store_unlock(&one);
        _exit(one.depth != 0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) ? WEXITSTATUS(status) == 0 : WTERMSIG(status) == SIGABRT);
    store_detach(&one);
    close_all();
}

/* What takes the kernel long is done without the lock, and what was announced stays so. */
static void nobody_waits_while_memory_is_asked_for(void)
{
    enum { MANY = 60000, PAGE_BYTES = 16 * PAGE_SIZE };
    REQUIRE(open_pair());
    uint64_t before = one.head->announced_size, found = 0;
    for (uint64_t i = 0; i < 2; i++) { /* what lies at the start of the events' memory */
        announcement_add(&one, 0, i, true);
        CHECK(store_lock(&one));
        event_add(&one, 0, i);
        store_unlock(&one);
    }
    most_at_once = 0;
    for (uint64_t i = 2; i < MANY; i++)
        CHECK(announcement_add(&one, 0, i * 2654435761u, true) == ANNOUNCED_NOWHERE);
    CHECK(one.head->announced_size >= 16 * before && most_at_once <= PAGE_BYTES);
    for (uint64_t i = 2; i < MANY; i++)
        found += announcement_is_elsewhere(&two, 0, i * 2654435761u);
    CHECK(found == MANY - 2);
    uint64_t start = one.announcements.offset + before * sizeof(uint64_t), at = start, end = start;
    next_data(file, &at, &end);
    CHECK(at >= start + before * sizeof(uint64_t)); /* the memory of the smaller tables is gone */
    CHECK(store_lock(&two) && store_check(&two) == 0);
    store_unlock(&two);
    most_at_once = 0;
    store_detach(&one);
    CHECK(most_at_once <= PAGE_BYTES);
    slots_reap(&two);
    close_all();
}

/* ---- children ---- */

/* Which frames a forked child may map that has the given number. */
static void a_child_holds_what_was_there_when_it_came(void)
{
    REQUIRE(open_pair());
    struct store_head *head = one.head;
    struct slot *child = &head->slots[two.slot + 1];
    head->slots_end = two.slot + 2;
    head->forks = 9;
    const struct {
        uint32_t number, born, left, sharers, lost;
        uint16_t pins;
        bool leased;
    } cases[] = {
        {.number = 5, .born = 4, .left = 5, .leased = true},
        {.number = 5, .born = 5, .left = 9, .leased = false}, /* made after it came */
        {.number = 5, .born = 0, .left = 4, .leased = false}, /* left before it came */
        {.number = 5, .born = 0, .left = 4, .sharers = 1, .leased = true},
        {.number = 5, .born = 5, .left = 5, .pins = 1, .leased = true},
        {.number = 5, .born = 5, .left = 5, .lost = 6, .leased = true},
        {.number = 5, .born = 6, .left = 6, .lost = 6, .leased = false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct frame frame = {.born = cases[i].born,
                              .left = cases[i].left,
                              .sharers = cases[i].sharers,
                              .pins = cases[i].pins};
        child->fork = cases[i].number;
        head->lost = cases[i].lost;
        child->kind = SLOT_CHILD;
        CHECK(store_leased(&one, &frame) == cases[i].leased);
        child->kind = SLOT_FREE;
        CHECK(store_leased(&one, &frame) == (cases[i].pins || cases[i].born < cases[i].lost));
    }
    head->lost = 0;
    store_detach(&one);
    close_all();
}

static void a_fork_leaves_a_lease_behind(void)
{
    REQUIRE(open_pair());
    uint32_t frame = shared_frame(&one, 1);
    store_fork_prepare(&one);
    REQUIRE(one.taking != NULL);
    unsigned slot = one.taking_slot;
    void *lease = one.taking; /* the child's, which maps it until it ends */
    CHECK(one.head->slots[slot].kind == SLOT_CHILD && one.head->slots[slot].fork == 1);
    store_leave(&one, frame);
    CHECK(!store_reap(&one) && state_of(&one, frame) == FRAME_LIVE);
    os_lease_drop(lease);
    CHECK(store_reap(&one) && state_of(&one, frame) == FRAME_FREE);
    store_detach(&one);
    close_all();
}

/* The dead make room; where there is none, frames of that time stay for ever. */
static void a_fork_without_a_slot_loses_frames(void)
{
    REQUIRE(open_pair());
    uint32_t frame = shared_frame(&one, 1);
    for (unsigned i = 2; i < MAX_SLOTS; i++)
        one.head->slots[i].kind = SLOT_CHILD;
    one.head->slots_end = MAX_SLOTS;
    store_fork_prepare(&one);
    CHECK(one.taking && !one.head->lost);
    store_fork_parent(&one);
    static void *leases[MAX_SLOTS];
    for (unsigned i = 2; i < MAX_SLOTS; i++) {
        one.head->slots[i].kind = SLOT_CHILD;
        CHECK(os_lease_take(one.lock_fd, 1 + i, &leases[i]) == 0);
    }
    store_fork_prepare(&one);
    CHECK(!one.taking && one.head->lost == 2);
    int status;
    pid_t pid = fork(); /* it holds its parent's slot as long as it lives */
    REQUIRE(pid >= 0);
    if (pid == 0)
        _exit(!os_is_mapped((uintptr_t)one.lease));
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    store_fork_parent(&one);
    pid = fork(); /* the next one has a slot, or none again */
    REQUIRE(pid >= 0);
    if (pid == 0)
        _exit(os_is_mapped((uintptr_t)one.lease));
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    for (unsigned i = 2; i < MAX_SLOTS; i++)
        os_lease_drop(leases[i]);
    slots_reap(&one);
    store_leave(&one, frame);
    CHECK(!store_reap(&one) && state_of(&one, frame) == FRAME_LIVE);
    store_detach(&one);
    close_all();
}

/* A child's copies would keep slots, and be written by nobody. */
static void children_inherit_neither_the_index_nor_the_slot(void)
{
    REQUIRE(open_pair());
    uint32_t frame = shared_frame(&one, 1);
    int status;
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0)
        _exit(os_is_mapped((uintptr_t)one.index) || os_is_mapped((uintptr_t)one.counts[0].base) ||
              os_is_mapped((uintptr_t)one.lease) || os_is_mapped((uintptr_t)one.memory));
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    store_pin(&one, frame); /* but what is mapped out of sight a child may have, too */
    pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0)
        _exit(!os_is_mapped((uintptr_t)one.lease));
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    store_fork_prepare(&one);
    store_fork_parent(&one); /* there is a slot for each child, and all of them hold ours too */
    pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0)
        _exit(!os_is_mapped((uintptr_t)one.lease));
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    die(&one);
    tidy(&one);
    close_all();
}

/* ---- coming and going ---- */

static void what_is_pinned_outlasts_its_store(void)
{
    REQUIRE(open_pair());
    uint32_t frame = shared_frame(&one, 1);
    unsigned slot = one.slot;
    store_pin(&one, frame);
    store_leave(&one, frame);
    void *lease = one.lease;
    store_detach(&one);
    CHECK(slot_is_held(&two, slot) && two.head->slots[slot].kind == SLOT_ENGINE);
    store_reap(&two);
    CHECK(state_of(&two, frame) == FRAME_LIVE);
    os_lease_drop(lease);
    slots_reap(&two);
    store_reap(&two);
    CHECK(state_of(&two, frame) == FRAME_FREE);
    close_all();
}

/* The pin is owed, and there is no memory to note that: so the frame is kept by the sharer. */
static void a_frame_that_cannot_be_pinned_is_not_left(void)
{
#ifdef __SANITIZE_THREAD__
    SKIP("the sanitizer asks for memory, too");
#endif
    struct rlimit limit, none = {.rlim_cur = 1};
    REQUIRE(open_pair() && getrlimit(RLIMIT_DATA, &limit) == 0);
    none.rlim_max = limit.rlim_max;
    uint32_t frame = shared_frame(&one, 1);
    CHECK(store_lock(&two));
    REQUIRE(setrlimit(RLIMIT_DATA, &none) == 0);
    store_pin(&one, frame);
    REQUIRE(setrlimit(RLIMIT_DATA, &limit) == 0);
    store_unlock(&two);
    store_leave(&one, frame);
    store_reap(&two);
    CHECK(state_of(&two, frame) == FRAME_LIVE);
    void *lease = one.lease;
    store_detach(&one);
    store_reap(&two);
    CHECK(state_of(&two, frame) == FRAME_LIVE);
    os_lease_drop(lease);
    store_reap(&two);
    CHECK(state_of(&two, frame) == FRAME_FREE);
    close_all();
}

static void who_leaves_frees_what_it_gave_up(void)
{
    REQUIRE(open_pair());
    uint32_t frame = filled_frame(&one, 1);
    CHECK(store_lock(&one));
    store_free(&one, frame);
    store_unlock(&one);
    store_detach(&one);
    CHECK(state_of(&two, frame) == FRAME_FREE);
    close_all();
}

/* A child's first try to make an engine its own failed, and what it was freeing was reaped. */
static void who_comes_again_has_nothing_left_to_free(void)
{
    REQUIRE(open_pair());
    uint32_t frames[] = {filled_frame(&one, 1), filled_frame(&one, 2)};
    CHECK(store_lock(&one));
    store_free(&one, frames[0]);
    store_free(&one, frames[1]);
    store_unlock(&one);
    no_holes = true;
    store_return_to_parent(&one);
    no_holes = false;
    CHECK(store_lock(&two));
    slots_reap(&two);
    store_unlock(&two);
    store_flush(&two);
    CHECK(state_of(&two, frames[0]) == FRAME_FREE && state_of(&two, frames[1]) == FRAME_FREE);
    REQUIRE(store_attach_again(&one) == 0);
    CHECK(one.dead_count == 0);
    uint32_t frame = filled_frame(&one, 3); /* the list has memory again */
    CHECK(store_lock(&one));
    store_free(&one, frame);
    store_unlock(&one);
    store_detach(&one);
    close_all();
}

static void rules_outlast_those_who_follow_them(void)
{
    REQUIRE(open_pair());
    two.head->knobs[KSMPY_KNOB_MAX_PAGE_SHARING] = 7;
    store_detach(&one);
    store_detach(&two);
    REQUIRE(attach(&two));
    CHECK(two.head->knobs[KSMPY_KNOB_MAX_PAGE_SHARING] == 7);
    close_all();
}

/* Each of them leads a newcomer somewhere else than it should go. */
static void a_newcomer_believes_nothing(void)
{
    REQUIRE(open_pair());
    uint32_t frame = shared_frame(&one, 1);
    struct store_head *head = one.head;
    struct ids_state *ids = &head->node[0].ids;
    struct forest_state *stable = &head->node[0].stable;
    struct store other;
    const struct {
        uint64_t *word, value;
    } damages[] = {
        {&head->knobs[KSMPY_KNOB_MAX_PAGE_SHARING], 0},
        {&head->knobs[0], 2},
        {&ids->high, one.ids[0].limit + 1},
        {&ids->high, 0},
        {&head->node[0].counted, one.ids[0].limit + 1},
        {&stable->trees, frame_limit(&one) + 1},
        {&stable->trees, 0},
        {&head->live_frames, 5},
        {&head->stale_frames, 1},
        {&head->huge_extents, 1},
        {&head->spare_frames, 1},
        {&head->shared_pages, 5},
        {&head->chains, 1},
    };
    for (size_t i = 0; i < sizeof damages / sizeof damages[0]; i++) {
        uint64_t before = *damages[i].word;
        *damages[i].word = damages[i].value;
        CHECK(store_attach(&other, file, 1, NULL) == -EUCLEAN);
        *damages[i].word = before;
    }
    CHECK(store_attach(&other, file, 2, NULL) == -EXDEV);
    head->pid_namespace++;
    CHECK(store_attach(&other, file, 1, NULL) == -EREMOTE);
    head->pid_namespace--;
    store_leave(&one, frame);
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
    RUN(a_slot_is_not_claimed_in_another_file);
    RUN(who_leaves_changes_no_other_file);
    RUN(freed_frames_leave_no_hole_in_another_file);
    RUN(an_outgrown_table_leaves_no_hole_in_another_file);
    RUN(a_frame_that_keeps_its_memory_is_not_free);
    RUN(a_frame_in_the_making_is_its_makers);
    RUN(others_hear_of_a_frame_with_room_again);
    RUN(an_index_whose_owner_died_is_made_anew);
    RUN(frames_behind_records_that_nobody_has_touched_stay);
    RUN(ids_are_known_once_there_are_records_for_them);
    RUN(an_index_is_made_anew_as_a_whole);
    RUN(counts_are_found_while_the_kernel_moves_them);
    RUN(extents_outlast_those_who_made_them);
    RUN(a_lock_is_waited_for_once);
    RUN(a_lock_is_given_back_once);
    RUN(nobody_waits_while_memory_is_asked_for);
    RUN(a_child_holds_what_was_there_when_it_came);
    RUN(a_fork_leaves_a_lease_behind);
    RUN(a_fork_without_a_slot_loses_frames);
    RUN(children_inherit_neither_the_index_nor_the_slot);
    RUN(what_is_pinned_outlasts_its_store);
    RUN(a_frame_that_cannot_be_pinned_is_not_left);
    RUN(who_leaves_frees_what_it_gave_up);
    RUN(who_comes_again_has_nothing_left_to_free);
    RUN(rules_outlast_those_who_follow_them);
    RUN(a_newcomer_believes_nothing);
    return finish();
}
