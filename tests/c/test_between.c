/*
 * Engines on one shared store, of which one is at a bad place when another one does something:
 * between two steps of its own, on every run.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/pages.h"
#include "check.h"
#include "engine/engine.h"
#include "freeze/freezer.h"
#include "ksmpy.h"
#include "merge/lonely.h"
#include "merge/plan.h"
#include "os/clock.h"
#include "os/files.h"
#include "os/map.h"
#include "pages.h"
#include "scan/migrate.h"
#include "store/attach.h"
#include "store/board.h"
#include "store/frames.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/reap.h"
#include "store/store.h"

/* Of each array: fewer are planned, more are carried out at once. */
enum { FEW = SHORT_RUN / 4, MANY = SHORT_RUN + 8 };
static unsigned pages_each = FEW;

/* ---- the places ---- */

static void (*before_join)(void);  /* once: frames were found, and not joined yet */
static void (*when_filled)(void);  /* once: nobody had a frame, and one is filled */
static void (*before_hearing)(void); /* once: a pass begins, which has not heard of the others */
static void (*when_dead)(void);    /* once: a slot was found to be held by nobody */
static void (*when_laid_out)(void); /* once: the store's file is given its size */
static uint64_t stopped_clock;      /* what the clock says all the time; 0: it goes */

uint64_t __real_freeze_reach(const struct freezer *fz, uintptr_t address, uint64_t n);
int64_t __real_join_frames(struct pages *pages, uint32_t frame, uint64_t n);
void __real_leave_lonely_frames(struct merger *merger);
int64_t __real_store_fill(struct store *store, uint32_t first, const void *pages, uint64_t n);
int64_t __real_store_gather(struct store *store, uint32_t first, const void *const *pages,
                            uint64_t n);
bool __real_os_lease_held(int lease_fd, uint64_t number);
int __real_os_set_size(int fd, uint64_t bytes);
uint64_t __real_os_now_ns(void);

static void act(void (**action)(void))
{
    void (*chosen)(void) = *action;
    *action = NULL;
    if (chosen)
        chosen();
}

uint64_t __wrap_freeze_reach(const struct freezer *fz, uintptr_t address, uint64_t n)
{
    act(&before_join);
    return __real_freeze_reach(fz, address, n);
}

int64_t __wrap_join_frames(struct pages *pages, uint32_t frame, uint64_t n)
{
    act(&before_join);
    return __real_join_frames(pages, frame, n);
}

void __wrap_leave_lonely_frames(struct merger *merger)
{
    __real_leave_lonely_frames(merger);
    act(&before_hearing);
}

int64_t __wrap_store_gather(struct store *store, uint32_t first, const void *const *pages,
                            uint64_t n)
{
    int64_t filled = __real_store_gather(store, first, pages, n);
    act(&when_filled);
    return filled;
}

int64_t __wrap_store_fill(struct store *store, uint32_t first, const void *pages, uint64_t n)
{
    int64_t filled = __real_store_fill(store, first, pages, n);
    act(&when_filled);
    return filled;
}

bool __wrap_os_lease_held(int lease_fd, uint64_t number)
{
    bool held = __real_os_lease_held(lease_fd, number);
    if (!held)
        act(&when_dead);
    return held;
}

int __wrap_os_set_size(int fd, uint64_t bytes)
{
    int error = __real_os_set_size(fd, bytes);
    act(&when_laid_out);
    return error;
}

uint64_t __wrap_os_now_ns(void)
{
    return stopped_clock ? stopped_clock : __real_os_now_ns();
}

/* ---- who is there ---- */

struct member {
    ksmpy_engine *engine;
    uint8_t *memory;
    uint32_t region;
};

static struct member one, two, three;
static int store;

static const int *node_ids; /* of the machine's nodes; NULL: tests say where pages lie */

static bool attach(struct member *member, int nodes)
{
    struct ksmpy_options options = {.nodes = nodes, .node_ids = node_ids, .store_fd = store};
    return ksmpy_engine_new(&options, &member->engine) == 0;
}

static bool bring(struct member *member, uint32_t seed)
{
    member->memory = os_alloc(bytes_of(pages_each));
    if (!member->memory)
        return false;
    fill(member->memory, pages_each, seed);
    return ksmpy_register(member->engine, (uintptr_t)member->memory, bytes_of(pages_each), 0,
                          &member->region) == 0;
}

static bool arrive(struct member *member, int nodes, uint32_t seed)
{
    return attach(member, nodes) && bring(member, seed);
}

static void forget(struct member *member)
{
    CHECK(ksmpy_release(member->engine, member->region, 0) == 0);
    os_unmap(member->memory, bytes_of(pages_each));
}

static void leave(struct member *member)
{
    forget(member);
    CHECK(ksmpy_engine_close(member->engine) == 0);
}

static bool open_store(void)
{
    store = os_memfd("ksmpy-store", 0);
    return store >= 0;
}

static uint64_t most_sharers(const struct store *in)
{
    uint64_t most = 0;
    for (uint64_t i = 0; i < in->ids[0].state->high; i++)
        if (frame_at(in, (uint32_t)i)->sharers > most)
            most = frame_at(in, (uint32_t)i)->sharers;
    return most;
}

/* How many frames pages were mapped onto, and how many of these others could not have found then. */
static uint64_t frames_mapped, mapped_too_soon;
int __real_freeze_overlay(struct freezer *fz, uint64_t first, uint64_t n, int memfd,
                          uint64_t offset);
int __wrap_freeze_overlay(struct freezer *fz, uint64_t first, uint64_t n, int memfd,
                          uint64_t offset)
{
    const struct merger *merger = (const void *)((const uint8_t *)fz - offsetof(struct merger, fz));
    const struct store *in = &merger->pages->store;
    uint32_t frame = (uint32_t)((offset - in->offset) >> PAGE_SHIFT);
    frames_mapped += n;
    for (uint64_t i = 0; i < n; i++)
        mapped_too_soon += frame_at(in, frame + (uint32_t)i)->state != FRAME_LIVE ||
                           !frame_at(in, frame + (uint32_t)i)->sharers;
    return __real_freeze_overlay(fz, first, n, memfd, offset);
}

/* ---- between finding frames and joining them ---- */

static void two_takes_the_last_place(void)
{
    CHECK(bring(&three, 1));
    scan(two.engine, KSMPY_SCAN_EAGER);
}

static void a_frame_has_no_sharer_too_many(void)
{
    REQUIRE(open_store() && arrive(&two, 1, 1) && attach(&one, 1));
    CHECK(ksmpy_knob_set(two.engine, KSMPY_KNOB_MAX_PAGE_SHARING, 3) == 0);
    struct member twin = {.engine = two.engine};
    three.engine = two.engine;
    REQUIRE(bring(&twin, 1));
    scan(two.engine, KSMPY_SCAN_EAGER);
    CHECK(most_sharers(&two.engine->pages.store) == 2);
    REQUIRE(bring(&one, 1));
    before_join = two_takes_the_last_place;
    scan(one.engine, KSMPY_SCAN_EAGER);
    CHECK(!before_join && most_sharers(&two.engine->pages.store) == 3);
    CHECK(sound(one.engine));
    forget(&three);
    forget(&twin);
    leave(&two);
    leave(&one);
    close(store);
}

static void two_unmerges(void)
{
    CHECK(ksmpy_unmerge(two.engine) == 0);
}

static bool is_zero(const uint8_t *page)
{
    return page[0] == 0 && memcmp(page, page + 1, PAGE_SIZE - 1) == 0;
}

/* Its memory reads as zeros by then, until somebody fills it anew. */
static void a_frame_that_was_freed_is_not_joined(void)
{
    REQUIRE(open_store() && arrive(&two, 1, 1) && arrive(&one, 1, 1));
    CHECK(ksmpy_knob_set(two.engine, KSMPY_KNOB_USE_ZERO_PAGES, 0) == 0);
    struct member twin = {.engine = two.engine};
    REQUIRE(bring(&twin, 1));
    memset(one.memory, 0, PAGE_SIZE);
    memset(two.memory, 0, PAGE_SIZE);
    memset(twin.memory, 0, PAGE_SIZE);
    scan(two.engine, KSMPY_SCAN_EAGER);
    CHECK(most_sharers(&two.engine->pages.store) == 2);
    before_join = two_unmerges;
    scan(one.engine, KSMPY_SCAN_EAGER);
    CHECK(!before_join && is_zero(one.memory));
    fill(two.memory, pages_each, 1000);
    fill(twin.memory, pages_each, 1000);
    scan(two.engine, KSMPY_SCAN_EAGER);
    CHECK(most_sharers(&two.engine->pages.store) == 2);
    CHECK(is_zero(one.memory));
    CHECK(sound(one.engine) && sound(two.engine));
    forget(&twin);
    leave(&two);
    leave(&one);
    close(store);
}

/* Frames of the same places, with the same bytes, come again under the other rule. */
static void two_switches_the_rule(void)
{
    CHECK(ksmpy_unmerge(two.engine) == 0);
    CHECK(ksmpy_knob_set(two.engine, KSMPY_KNOB_MERGE_ACROSS_NODES, 0) == 0);
    scan(two.engine, KSMPY_SCAN_EAGER);
    CHECK(most_sharers(&two.engine->pages.store) == 2);
}

static void a_rule_holds_for_who_looked_before_it(void)
{
    uint8_t nodes[MANY];
    REQUIRE(open_store() && arrive(&two, 2, 1) && attach(&one, 2));
    struct member twin = {.engine = two.engine};
    REQUIRE(bring(&twin, 1));
    scan(two.engine, KSMPY_SCAN_EAGER);
    REQUIRE(bring(&one, 1));
    memset(nodes, 1, sizeof nodes); /* those of the others lie on node 0 */
    CHECK(ksmpy_set_nodes(one.engine, one.region, nodes, pages_each) == 0);
    before_join = two_switches_the_rule;
    scan(one.engine, KSMPY_SCAN_EAGER);
    CHECK(!before_join && most_sharers(&two.engine->pages.store) == 2);
    CHECK(sound(one.engine));
    forget(&twin);
    leave(&two);
    leave(&one);
    close(store);
}

/* ---- between finding no frame and making one ---- */

static struct member twins[2];

static bool bring_pair(struct member *member, struct member *twin)
{
    twin->engine = member->engine;
    return bring(member, 1) && bring(twin, 1);
}

static void two_comes_first(void)
{
    scan(two.engine, KSMPY_SCAN_EAGER);
}

static void two_comes_first_with_a_pair(void)
{
    CHECK(bring_pair(&two, &twins[1]));
    scan(two.engine, KSMPY_SCAN_EAGER);
}

/* Of equal pages: shared, sharing. */
static bool counted(uint64_t frames, uint64_t saved)
{
    const struct store_head *head = one.engine->pages.store.head;
    CHECK(head->shared_frames == frames && head->shared_pages - head->shared_frames == saved);
    return head->shared_frames == frames && head->shared_pages - head->shared_frames == saved &&
           sound(one.engine) && sound(two.engine);
}

/* Four equal arrays in two processes that look at the same time. */
static bool both_look(uint64_t sharing)
{
    if (!open_store() || !attach(&one, 1) || !attach(&two, 1))
        return false;
    CHECK(ksmpy_knob_set(one.engine, KSMPY_KNOB_MAX_PAGE_SHARING, sharing) == 0);
    if (!bring_pair(&one, &twins[0]) || !bring_pair(&two, &twins[1]))
        return false;
    when_filled = two_comes_first;
    scan(one.engine, KSMPY_SCAN_EAGER);
    return !when_filled;
}

static void part(void)
{
    CHECK(filled(one.memory, pages_each, 1) && filled(two.memory, pages_each, 1));
    CHECK(filled(twins[0].memory, pages_each, 1) && filled(twins[1].memory, pages_each, 1));
    forget(&twins[0]);
    forget(&twins[1]);
    leave(&one);
    leave(&two);
    close(store);
}

static void who_comes_second_takes_the_frames_of_the_first(void)
{
    REQUIRE(both_look(256));
    CHECK(counted(pages_each, 3 * pages_each));
    CHECK(one.engine->pages.store.head->chains == 0);
    part();
}

static void full_frames_are_no_reason_to_go_without(void)
{
    REQUIRE(both_look(2));
    CHECK(counted(2 * pages_each, 2 * pages_each));
    CHECK(one.engine->pages.store.head->dups == 2 * pages_each);
    part();
}

/*
 * Frames that are made in several steps for one stretch of equal pages do not take each other's.
 * The stretch is merged in one slice, however slow the machine is.
 */
static void a_block_of_equal_frames_stays_a_row(void)
{
    uint8_t *room = os_alloc(bytes_of(2 * RUN_MAX)), *pages = room;
    uint32_t region;
    REQUIRE(open_store() && attach(&one, 1) && room);
    CHECK(ksmpy_knob_set(one.engine, KSMPY_KNOB_MAX_PAGE_SHARING, 2) == 0);
    while (!run_starts_at((uintptr_t)pages))
        pages += PAGE_SIZE;
    memset(pages, 7, bytes_of(RUN_MAX));
    REQUIRE(ksmpy_register(one.engine, (uintptr_t)pages, bytes_of(RUN_MAX), 0, &region) == 0);
    stopped_clock = __real_os_now_ns();
    scan(one.engine, KSMPY_SCAN_EAGER);
    stopped_clock = 0;
    uint32_t base = region_at(&one.engine->pages, region)->base, broken = 0;
    for (uint32_t id = base + 1; id < base + RUN_MAX; id++)
        broken += page_record(&one.engine->pages, id)->link !=
                  page_record(&one.engine->pages, id - 1)->link + 1;
    CHECK(broken == 1 && most_sharers(&one.engine->pages.store) == 2);
    CHECK(ksmpy_release(one.engine, region, 0) == 0);
    CHECK(ksmpy_engine_close(one.engine) == 0);
    os_unmap(room, bytes_of(2 * RUN_MAX));
    close(store);
}

static void frames_with_room_for_one_take_one(void)
{
    REQUIRE(both_look(3));
    CHECK(counted(pages_each, 2 * pages_each));
    part();
}

/* Whoever claimed what others wait for comes second to one of them, which found an equal page. */
static void a_claim_that_comes_late_ends_on_the_frames_there_are(void)
{
    struct member waits;
    REQUIRE(open_store() && attach(&one, 1) && attach(&two, 1));
    waits.engine = two.engine;
    REQUIRE(bring(&waits, 1));
    scan(two.engine, KSMPY_SCAN_EAGER);
    REQUIRE(bring_pair(&one, &twins[0]));
    when_filled = two_comes_first_with_a_pair;
    scan(one.engine, KSMPY_SCAN_EAGER);
    CHECK(!when_filled);
    scan(two.engine, KSMPY_SCAN_EAGER);
    CHECK(counted(pages_each, 4 * pages_each));
    forget(&waits);
    part();
}

/* Its owner writes to a page between its copy and the look at it: the frame goes as it came. */
static void one_writes(void)
{
    one.memory[0] ^= 1;
    twins[0].memory[0] ^= 1;
}

/* So whoever reaps a dead process need not ask who maps what it was filling: nobody does. */
static void frames_are_in_the_index_before_pages_lie_on_them(void)
{
    frames_mapped = mapped_too_soon = 0;
    REQUIRE(open_store() && attach(&one, 1) && attach(&two, 1) && bring_pair(&one, &twins[0]));
    REQUIRE(bring_pair(&two, &twins[1]));
    scan(one.engine, KSMPY_SCAN_EAGER);
    scan(two.engine, KSMPY_SCAN_EAGER);
    CHECK(counted(pages_each, 3 * pages_each));
    CHECK(frames_mapped == 4 * pages_each && mapped_too_soon == 0);
    part();
}

static void a_frame_that_nobody_maps_goes(void)
{
    REQUIRE(open_store() && attach(&one, 1) && attach(&two, 1) && bring_pair(&one, &twins[0]));
    when_filled = one_writes;
    scan(one.engine, KSMPY_SCAN_EAGER);
    CHECK(!when_filled && counted(pages_each - 1, pages_each - 1));
    CHECK(one.engine->pages.store.head->live_frames == pages_each - 1);
    one_writes();
    REQUIRE(bring_pair(&two, &twins[1]));
    part();
}

/* ---- between the beginning of a pass and what others have said before it ---- */

static pthread_t busy;
static atomic_bool has_lock;

/* Keeps the store's lock for longer than anybody waits for it at once. */
static void *keep_lock(void *unused)
{
    CHECK(store_lock_soundly(&two.engine->pages.store) == 0);
    atomic_store(&has_lock, true);
    os_sleep_us(10 * LOCK_TRY_MS * 1000);
    store_unlock(&two.engine->pages.store);
    return unused;
}

static void two_keeps_the_lock(void)
{
    REQUIRE(pthread_create(&busy, NULL, keep_lock, NULL) == 0);
    while (!atomic_load(&has_lock))
        sched_yield();
}

static void hears_of_frames(bool missed)
{
    REQUIRE(open_store() && arrive(&one, 1, 1) && attach(&two, 1));
    scan(one.engine, KSMPY_SCAN_EAGER);
    REQUIRE(bring(&two, 1));
    scan(two.engine, KSMPY_SCAN_EAGER);
    if (missed)
        events_reset(&two.engine->pages.store);
    atomic_store(&has_lock, false);
    before_hearing = two_keeps_the_lock;
    scan(one.engine, 0);
    CHECK(!before_hearing && pthread_join(busy, NULL) == 0);
    CHECK(counted(pages_each, pages_each));
    leave(&one);
    leave(&two);
    close(store);
}

static void a_pass_waits_for_what_others_have_said(void)
{
    hears_of_frames(false);
    hears_of_frames(true);
}

/* How often one has the store's lock in a pass of its own. */
static uint64_t locks_of_a_pass(void)
{
    uint64_t before = one.engine->pages.store.locks;
    scan(one.engine, KSMPY_SCAN_EAGER);
    return one.engine->pages.store.locks - before;
}

/* Frames in a row are found, joined and mapped with a few holds of the lock, however many they are. */
static void a_row_of_frames_takes_few_locks(void)
{
    enum { FEW_LOCKS = 12 };
    struct member twin;
    pages_each = 2 * MANY;
    REQUIRE(open_store() && arrive(&two, 1, 1) && attach(&one, 1));
    twin.engine = two.engine;
    REQUIRE(bring(&twin, 1) && bring(&one, 1));
    scan(two.engine, KSMPY_SCAN_EAGER);
    CHECK(locks_of_a_pass() <= FEW_LOCKS && counted(pages_each, 2 * pages_each));
    forget(&twin);
    leave(&two);
    leave(&one);
    close(store);
}

/* Nor do pages that wait take one each where all are looked up again, as events were missed. */
static void pages_that_wait_take_few_locks(void)
{
    enum { FEW_LOCKS = 12 };
    pages_each = 2 * MANY;
    REQUIRE(open_store() && arrive(&one, 1, 1) && attach(&two, 1));
    scan(one.engine, KSMPY_SCAN_EAGER);
    events_reset(&two.engine->pages.store);
    CHECK(locks_of_a_pass() <= FEW_LOCKS);
    CHECK(one.engine->pages.pages_in[PAGE_WAITING] == pages_each);
    leave(&one);
    CHECK(ksmpy_engine_close(two.engine) == 0);
    close(store);
}

static atomic_bool may_let_go;

static void *keep_lock_for_long(void *unused)
{
    CHECK(store_lock_soundly(&two.engine->pages.store) == 0);
    atomic_store(&has_lock, true);
    while (!atomic_load(&may_let_go))
        sched_yield();
    store_unlock(&two.engine->pages.store);
    return unused;
}

/* Whoever goes on without it has not got it, then or later. */
static void a_lock_that_was_not_had_is_not_given_back(void)
{
    static const int nodes[] = {0, 1};
    node_ids = nodes;
    REQUIRE(open_store() && attach(&one, 2) && attach(&two, 2));
    node_ids = NULL;
    CHECK(ksmpy_knob_set(one.engine, KSMPY_KNOB_MERGE_ACROSS_NODES, 0) == 0);
    struct member twin = {.engine = one.engine};
    REQUIRE(bring(&one, 1) && bring(&twin, 1));
    scan(one.engine, KSMPY_SCAN_EAGER);
    scan(one.engine, KSMPY_SCAN_EAGER);
    struct store *ours = &one.engine->pages.store;
    CHECK(ours->head->live_frames == pages_each);
    atomic_store(&has_lock, false);
    atomic_store(&may_let_go, false);
    REQUIRE(pthread_create(&busy, NULL, keep_lock_for_long, NULL) == 0);
    while (!atomic_load(&has_lock))
        sched_yield();
    frames_follow_nodes(&one.engine->pages);
    CHECK(ours->depth == 0 && !store_lock(ours));
    atomic_store(&may_let_go, true);
    CHECK(pthread_join(busy, NULL) == 0 && store_lock(ours) && ours->depth == 1);
    store_unlock(ours);
    forget(&twin);
    leave(&one);
    CHECK(ksmpy_engine_close(two.engine) == 0);
    close(store);
}

/* ---- between finding a dead one and reaping it ---- */

static unsigned lost_slot;

static void a_newcomer_takes_the_slot(void)
{
    REQUIRE(arrive(&two, 1, 1));
    CHECK(two.engine->pages.store.slot == lost_slot);
    three.engine = two.engine;
    REQUIRE(bring(&three, 1));
    scan(two.engine, KSMPY_SCAN_EAGER);
}

static void nobody_is_reaped_alive(void)
{
    REQUIRE(open_store() && arrive(&one, 1, 1000));
    struct store *seen = &one.engine->pages.store;
    lost_slot = seen->slot + 1;
    atomic_store(&seen->head->slots[lost_slot].kind, SLOT_ENGINE);
    atomic_store(&seen->head->slots_end, lost_slot + 1);
    when_dead = a_newcomer_takes_the_slot;
    slots_reap(seen);
    store_flush(seen);
    CHECK(!when_dead);
    struct member twin = {.engine = one.engine};
    REQUIRE(bring(&twin, 1000));
    scan(one.engine, KSMPY_SCAN_EAGER);
    CHECK(filled(two.memory, pages_each, 1) && filled(three.memory, pages_each, 1));
    CHECK(sound(one.engine) && sound(two.engine));
    forget(&three);
    leave(&two);
    forget(&twin);
    leave(&one);
    close(store);
}

/* Whoever asks another file finds that nobody holds a lock. */
static void who_lost_its_files_reaps_nobody(void)
{
    REQUIRE(open_store() && arrive(&one, 1, 1) && arrive(&two, 1, 1));
    scan(one.engine, KSMPY_SCAN_EAGER);
    scan(two.engine, KSMPY_SCAN_EAGER);
    scan(one.engine, KSMPY_SCAN_EAGER);
    CHECK(most_sharers(&one.engine->pages.store) == 2);
    int lock_fd = one.engine->pages.store.lock_fd;
    int kept = fcntl(lock_fd, F_DUPFD_CLOEXEC, 0);
    int other = os_memfd("other", (size_t)os_file_size(store)); /* in which all counts are 0 */
    REQUIRE(kept >= 0 && other >= 0 && dup2(other, lock_fd) == lock_fd);
    CHECK(ksmpy_unmerge(one.engine) == 0);
    struct ksmpy_store_process there[4];
    CHECK(ksmpy_store_processes(store, there, 4) == 2);
    CHECK(most_sharers(&two.engine->pages.store) == 1);
    CHECK(!two.engine->pages.store.head->half_changed);
    CHECK(filled(one.memory, pages_each, 1) && filled(two.memory, pages_each, 1));
    REQUIRE(dup2(kept, lock_fd) == lock_fd);
    close(kept);
    close(other);
    CHECK(sound(two.engine));
    leave(&two);
    leave(&one);
    close(store);
}

/* ---- the attach lock ---- */

static int answer;

/* Not by an engine, which would wait for itself: a fork waits for either. */
static void another_one_comes(void)
{
    struct store second;
    answer = store_attach(&second, store, 1, NULL);
    if (!answer)
        store_destroy(&second);
}

static void one_at_a_time_lays_out_a_store(void)
{
    REQUIRE(open_store());
    when_laid_out = another_one_comes;
    REQUIRE(arrive(&one, 1, 1));
    CHECK(!when_laid_out && answer == -EAGAIN);
    CHECK(sound(one.engine));
    another_one_comes();
    CHECK(answer == 0);
    leave(&one);
    close(store);
}

static void merging(unsigned pages)
{
    printf("%u pages each\n", pages);
    pages_each = pages;
    RUN(a_frame_has_no_sharer_too_many);
    RUN(a_frame_that_was_freed_is_not_joined);
    RUN(a_rule_holds_for_who_looked_before_it);
    RUN(who_comes_second_takes_the_frames_of_the_first);
    RUN(full_frames_are_no_reason_to_go_without);
    RUN(frames_with_room_for_one_take_one);
    RUN(a_claim_that_comes_late_ends_on_the_frames_there_are);
    RUN(a_frame_that_nobody_maps_goes);
    RUN(frames_are_in_the_index_before_pages_lie_on_them);
    RUN(a_pass_waits_for_what_others_have_said);
}

int main(void)
{
    merging(MANY);
    merging(FEW);
    RUN(a_row_of_frames_takes_few_locks);
    RUN(pages_that_wait_take_few_locks);
    RUN(a_block_of_equal_frames_stays_a_row);
    RUN(a_lock_that_was_not_had_is_not_given_back);
    RUN(nobody_is_reaped_alive);
    RUN(who_lost_its_files_reaps_nobody);
    RUN(one_at_a_time_lays_out_a_store);
    return finish();
}
