/*
 * Who uses a store: its slots, frames and descriptors, forked children, coming and going.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/pages.h"
#include "check.h"
#include "no_memory.h"
#include "os/arena.h"
#include "os/files.h"
#include "os/lease.h"
#include "os/map.h"
#include "pair.h"
#include "store/announce.h"
#include "store/attach.h"
#include "store/board.h"
#include "store/children.h"
#include "store/collapse.h"
#include "store/extents.h"
#include "store/frames.h"
#include "store/inspect.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/pool.h"
#include "store/private.h"
#include "store/reap.h"
#include "store/room.h"
#include "store/slots.h"
#include "store/store.h"

static bool no_holes;
int __real_os_punch(int fd, uint64_t offset, uint64_t bytes);
int __wrap_os_punch(int fd, uint64_t offset, uint64_t bytes)
{
    return no_holes ? -ENOMEM : __real_os_punch(fd, offset, bytes);
}

/* ---- descriptors that are another file's ---- */

/* A file of the program's that has got the number of one of ours. */
struct in_place {
    int number, kept, other;
};

static struct in_place put_in_place_of(int number)
{
    struct in_place in_place = {number, fcntl(number, F_DUPFD_CLOEXEC, 0), os_memfd("other", 0)};
    CHECK(in_place.kept >= 0 && in_place.other >= 0);
    CHECK(os_set_size(in_place.other, (uint64_t)os_file_size(number)) == 0);
    CHECK(dup2(in_place.other, number) == number);
    return in_place;
}

/* It is as it was: as long as the store's, and all of it a hole. */
static void is_untouched(struct in_place in_place)
{
    struct stat info;
    CHECK(fstat(in_place.other, &info) == 0 && info.st_blocks == 0);
    CHECK(info.st_size == os_file_size(in_place.kept));
}

static void take_out(struct in_place in_place)
{
    CHECK(dup2(in_place.kept, in_place.number) == in_place.number);
    close(in_place.kept);
    close(in_place.other);
}

static void another_file_is_not_written_to(void)
{
    static uint8_t page[1 << PAGE_SHIFT];
    const void *const pages[] = {page};
    uint64_t n = 1;
    int error = 0;
    REQUIRE(open_pair());
    uint32_t frame = store_take(&one, 0, &n);
    memset(page, 1, sizeof page);
    struct in_place in_place = put_in_place_of(one.write_fd);
    CHECK(store_fill(&one, frame, page, 1) == -EBADF);
    CHECK(store_gather(&one, frame, pages, 1) == -EBADF);
    CHECK(extents_collapse(&one, 0, EXTENT, &error) == 0 && error == -EBADF);
    CHECK(store_retire(&one) == -EBADF);
    is_untouched(in_place);
    take_out(in_place);
    store_give_back(&one, frame, 1);
    store_detach(&one);
    close_all();
}

static void another_file_gets_no_holes(void)
{
    const uint64_t mark = 0x5eed;
    uint64_t seen = 0;
    REQUIRE(open_pair());
    const uint64_t at[] = {one.announcements.offset, counts_offset(&one, two.slot)};
    const int files[] = {one.write_fd, one.lock_fd};
    for (int i = 0; i < 2; i++) {
        struct in_place in_place = put_in_place_of(files[i]);
        REQUIRE(pwrite(in_place.other, &mark, sizeof mark, (off_t)at[i]) == sizeof mark);
        REQUIRE(store_lock(&one));
        if (i)
            clear_counts(&one, two.slot);
        else
            CHECK(announcements_reset(&one) == -EBADF);
        store_unlock(&one);
        CHECK(os_pread(in_place.other, at[i], &seen, sizeof seen) == 0 && seen == mark);
        take_out(in_place);
    }
    REQUIRE(store_lock(&one) && announcements_reset(&one) == 0);
    store_unlock(&one);
    store_detach(&one);
    close_all();
}

static void forget_count(struct store *store, uint32_t frame, uint32_t count)
{
    (void)store, (void)frame, (void)count;
}

/* Nobody has a lock there, nor a count. */
static void in_another_file_nobody_is_dead(void)
{
    REQUIRE(open_pair());
    uint32_t frame = filled_frame(&one, 1);
    CHECK(store_join(&one, frame, 1) == 1);
    struct in_place in_place = put_in_place_of(two.lock_fd);
    CHECK(slot_is_held(&two, one.slot) && slots_are_held(&two));
    CHECK(each_count(&two, one.slot, forget_count) == -EBADF);
    slot_sign(&two);
    two.head->node[0].counted = 1;
    store_count_for(&two, one.slot);
    is_untouched(in_place);
    take_out(in_place);
    two.head->node[0].counted = 0;
    store_leave(&one, frame);
    store_give_back(&one, frame, 1);
    store_detach(&one);
    close_all();
}

static void another_file_is_no_index(void)
{
    struct store third;
    struct store_shape shape;
    REQUIRE(open_pair() && store_open(&third, file) == 0 && store_read_shape(file, &shape) == 0);
    struct in_place in_place = put_in_place_of(third.write_fd);
    CHECK(store_map(&third, &shape) == -EBADF && !third.index);
    is_untouched(in_place);
    take_out(in_place);
    in_place = put_in_place_of(one.write_fd);
    CHECK(store_map_counts(&one, two.slot) == -EBADF);
    take_out(in_place);
    store_close_files(&third);
    store_detach(&one);
    close_all();
}

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

/* ---- what a store takes ---- */

/* Huge pages of which an index uses a little are no saving. */
static void an_index_on_huge_pages_counts_as_what_it_takes(void)
{
    struct ksmpy_store_stats stats;
    int filler;
    if (!open_mounted_pair("size=256m,huge=always,mode=0700", &filler))
        SKIP("no file system can be mounted here");
    uint32_t frame = filled_frame(&one, 1);
    CHECK(store_join(&one, frame, 1) == 1 && store_join(&two, frame, 1) == -ESTALE);
    uint64_t takes = (uint64_t)os_file_memory(file), beside = takes - store_bytes(&one);
    CHECK(takes > bytes_of(EXTENT));
    uint64_t own = one.dead.committed * one.dead.stride + one.debts.committed * one.debts.stride;
    CHECK(store_metadata_bytes(&one) == beside + own);
    CHECK(inspect_stats(file, &stats) == 0 && stats.metadata_bytes == beside);
    store_leave(&one, frame);
    store_give_back(&one, frame, 1);
    store_detach(&one);
    close_all();
    close(filler);
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
/* There are fewer numbers than there may be overlays on a frame. */
static void a_frame_with_countless_pins_stays_pinned(void)
{
    struct store own;
    uint64_t n = 1;
    REQUIRE(store_init(&own, 1, NULL) == 0);
    uint32_t frame = store_take(&own, 0, &n);
    for (uint32_t i = 0; i <= UINT16_MAX; i++)
        store_pin(&own, frame);
    for (uint32_t i = 0; i < UINT16_MAX; i++)
        store_unpin(&own, frame);
    CHECK(frame_at(&own, frame)->pins);
    store_destroy(&own);
}

static void a_frame_that_cannot_be_pinned_is_not_left(void)
{
#ifdef __SANITIZE_THREAD__
    SKIP("the sanitizer asks for memory, too");
#endif
    struct rlimit limit;
    REQUIRE(open_pair());
    uint32_t frame = shared_frame(&one, 1);
    CHECK(store_lock(&two));
    REQUIRE(take_all_memory(&limit));
    store_pin(&one, frame);
    REQUIRE(give_memory_back(&limit));
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
    RUN(a_slot_is_not_claimed_in_another_file);
    RUN(another_file_is_not_written_to);
    RUN(another_file_gets_no_holes);
    RUN(in_another_file_nobody_is_dead);
    RUN(another_file_is_no_index);
    RUN(who_leaves_changes_no_other_file);
    RUN(freed_frames_leave_no_hole_in_another_file);
    RUN(an_outgrown_table_leaves_no_hole_in_another_file);
    RUN(an_index_on_huge_pages_counts_as_what_it_takes);
    RUN(a_frame_that_keeps_its_memory_is_not_free);
    RUN(a_frame_in_the_making_is_its_makers);
    RUN(others_hear_of_a_frame_with_room_again);
    RUN(a_child_holds_what_was_there_when_it_came);
    RUN(a_fork_leaves_a_lease_behind);
    RUN(a_fork_without_a_slot_loses_frames);
    RUN(children_inherit_neither_the_index_nor_the_slot);
    RUN(what_is_pinned_outlasts_its_store);
    RUN(a_frame_with_countless_pins_stays_pinned);
    RUN(a_frame_that_cannot_be_pinned_is_not_left);
    RUN(who_leaves_frees_what_it_gave_up);
    RUN(who_comes_again_has_nothing_left_to_free);
    RUN(rules_outlast_those_who_follow_them);
    RUN(a_newcomer_believes_nothing);
    return finish();
}
