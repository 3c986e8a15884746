/*
 * Somebody waits for the engine's lock all the time, so that each slice of a pass ends at its first
 * step: in the middle of runs, where others do their worst, on every run.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/pages.h"
#include "check.h"
#include "engine/engine.h"
#include "engine/locks.h"
#include "ksmpy.h"
#include "merge/run.h"
#include "os/clock.h"
#include "os/files.h"
#include "pages.h"
#include "store/collapse.h"
#include "store/pool.h"

enum { PAGES = 2 * 512 + 76 };

static ksmpy_engine *engine;
static uint8_t *a, *b;
static uint32_t region_a, region_b;
static int way, tracking;

/* ---- who waits ---- */

static bool somebody; /* waits, at each look */
enum { LOOK_NS = 240000 }; /* longer than a slice takes at least, and half as long as one at most */
static uint64_t stopped_clock; /* on which each look takes LOOK_NS if somebody waits */
static uint64_t look_ns; /* and so long if nobody does */
static unsigned cuts; /* hand-overs in the middle of a run */
static void (*between)(void);
static unsigned at_cut; /* after so many of them */

uint64_t __real_os_now_ns(void);
uint64_t __wrap_os_now_ns(void)
{
    stopped_clock += somebody ? LOOK_NS : look_ns;
    return stopped_clock ? stopped_clock : __real_os_now_ns();
}

static void act(void)
{
    void (*action)(void) = between;
    between = NULL;
    action();
}

void __real_pass_lets_others_in(ksmpy_engine *sliced);
void __wrap_pass_lets_others_in(ksmpy_engine *sliced)
{
    cuts += sliced->scanner.unfinished;
    if (!somebody) {
        __real_pass_lets_others_in(sliced);
        return;
    }
    somebody = false;
    atomic_store(&sliced->waiting, 0);
    engine_unlock(sliced);
    if (sliced->scanner.unfinished && between && cuts > at_cut)
        act();
    engine_lock_for_pass(sliced);
    atomic_store(&sliced->waiting, 1);
    somebody = true;
}

static void (*while_collapsing)(void);
static uint64_t collapsed; /* frames by the last call */

uint64_t __real_extents_collapse(const struct store *store, uint32_t first, uint64_t n, int *error);
uint64_t __wrap_extents_collapse(const struct store *store, uint32_t first, uint64_t n, int *error)
{
    uint64_t huge = __real_extents_collapse(store, first, n, error);
    collapsed = n;
    if (while_collapsing) {
        between = while_collapsing;
        while_collapsing = NULL;
        act();
    }
    return huge;
}

static void begin(void)
{
    cuts = 0;
    stopped_clock = __real_os_now_ns();
    somebody = true;
    atomic_store(&engine->waiting, 1);
}

static void end(void)
{
    stopped_clock = 0;
    somebody = false;
    atomic_store(&engine->waiting, 0);
}

static struct ksmpy_scan_result scan_awaited(void)
{
    begin();
    struct ksmpy_scan_result result = scan(engine, KSMPY_SCAN_EAGER);
    end();
    return result;
}

/* ---- the scene ---- */

static bool watch(uint8_t *memory, uint32_t *region)
{
    return ksmpy_register(engine, (uintptr_t)memory, bytes_of(PAGES), 0, region) == 0;
}

/* Where a run begins, so that all of the array is one. */
static uint8_t *new_array(uint32_t seed)
{
    const size_t bytes = bytes_of(PAGES), size = bytes_of(RUN_MAX);
    uint8_t *room =
        mmap(NULL, bytes + size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED)
        return NULL;
    size_t before = size - (uintptr_t)room % size;
    munmap(room, before);
    munmap(room + before + bytes, size - before);
    fill(room + before, PAGES, seed);
    return room + before;
}

static bool open_arrays(void)
{
    engine = engine_of(way, tracking, 1);
    a = new_array(1);
    b = new_array(1);
    return engine && a && b && watch(a, &region_a) && watch(b, &region_b);
}

static void close_all(void)
{
    CHECK(!between && !while_collapsing && sound(engine));
    while (engine->pages.first_region != NO_REGION)
        REQUIRE(ksmpy_release(engine, engine->pages.first_region, 0) == 0);
    ksmpy_unmerge(engine); /* what a child could map is reaped */
    CHECK(sound(engine) && store_bytes(&engine->pages.store) == 0);
    CHECK(ksmpy_engine_close(engine) == 0);
    munmap(a, bytes_of(PAGES));
    munmap(b, bytes_of(PAGES));
}

static uint64_t pages_in(uint32_t region, enum page_state state)
{
    return region_at(&engine->pages, region)->pages_in[state];
}

static uint64_t shared_of(uint32_t region)
{
    return pages_in(region, PAGE_SHARED);
}

/* How often the frame of a page is not the one that follows that of the page before. */
static unsigned breaks_of(uint32_t region)
{
    uint32_t first = region_at(&engine->pages, region)->base;
    unsigned breaks = 0;
    for (uint32_t id = first + 1; id < first + PAGES; id++)
        breaks +=
            page_record(&engine->pages, id)->link != page_record(&engine->pages, id - 1)->link + 1;
    return breaks;
}

/* ---- each kind of run ---- */

static void all_pairs_are_merged(void)
{
    REQUIRE(open_arrays());
    struct ksmpy_scan_result result = scan_awaited();
    CHECK(cuts > 1 && result.merged == 2 * PAGES);
    CHECK(shared_of(region_a) == PAGES && shared_of(region_b) == PAGES);
    CHECK(engine->pages.store.head->live_frames == PAGES && breaks_of(region_b) <= 2);
    CHECK(filled(a, PAGES, 1) && filled(b, PAGES, 1));
    close_all();
}

/* A run is over with the page at which another one begins, which waits until it is carried out. */
static void the_page_behind_a_run_is_visited_once(void)
{
    enum { FIRST = 500, REST = PAGES - FIRST, APART = 100 }; /* so many of a have no equal */
    struct ksmpy_stats stats;
    REQUIRE(open_arrays());
    fill(b, FIRST, 1 + PAGES - FIRST);
    fill(b + bytes_of(FIRST), REST, 1 + APART);
    struct ksmpy_scan_result result = scan_awaited();
    CHECK(cuts && shared_of(region_b) == PAGES && result.merged == 2 * PAGES - APART);
    CHECK(ksmpy_stats(engine, &stats) == 0 && stats.pages_scanned == 2 * PAGES);
    CHECK(filled(b, FIRST, 1 + PAGES - FIRST) && filled(b + bytes_of(FIRST), REST, 1 + APART));
    close_all();
}

static void pages_go_onto_frames_that_are_there(void)
{
    uint32_t region_c;
    REQUIRE(open_arrays());
    uint8_t *c = new_array(1);
    scan(engine, KSMPY_SCAN_EAGER);
    REQUIRE(c && watch(c, &region_c));
    scan_awaited();
    CHECK(cuts && shared_of(region_c) == PAGES && filled(c, PAGES, 1));
    close_all();
    munmap(c, bytes_of(PAGES));
}

static void equal_neighbours_are_merged(void)
{
    REQUIRE(open_arrays());
    CHECK(ksmpy_knob_set(engine, KSMPY_KNOB_MAX_PAGE_SHARING, 3) == 0);
    memset(a, 7, bytes_of(PAGES));
    memset(b, 7, bytes_of(PAGES));
    scan_awaited();
    CHECK(cuts && shared_of(region_a) + shared_of(region_b) >= 2 * PAGES - 1);
    CHECK(a[0] == 7 && !memcmp(a, a + 1, bytes_of(PAGES) - 1) && !memcmp(a, b, bytes_of(PAGES)));
    close_all();
}

static void zeros_go_to_the_zero_page(void)
{
    REQUIRE(open_arrays());
    CHECK(ksmpy_knob_set(engine, KSMPY_KNOB_USE_ZERO_PAGES, 1) == 0);
    memset(a, 0, bytes_of(PAGES));
    struct ksmpy_scan_result result = scan_awaited();
    CHECK(cuts && result.zeroed == PAGES && pages_in(region_a, PAGE_ZERO) == PAGES);
    CHECK(a[0] == 0 && !memcmp(a, a + 1, bytes_of(PAGES) - 1) && filled(b, PAGES, 1));
    close_all();
}

static void written_pages_come_back(void)
{
    REQUIRE(open_arrays());
    scan(engine, KSMPY_SCAN_EAGER);
    for (unsigned page = 0; page < PAGES; page++)
        b[bytes_of(page)] ^= 1;
    struct ksmpy_scan_result result = scan_awaited();
    CHECK(cuts && result.unmerged == PAGES && shared_of(region_b) == 0);
    for (unsigned page = 0; page < PAGES; page++)
        b[bytes_of(page)] ^= 1;
    CHECK(filled(a, PAGES, 1) && filled(b, PAGES, 1));
    close_all();
}

/* ---- what another process waits for ---- */

static int store;
static ksmpy_engine *other; /* is that process here */
static uint32_t others;

static bool open_others(void)
{
    store = os_memfd("ksmpy-test", 0);
    struct ksmpy_options options = {
        .freeze = way, .tracking = tracking, .nodes = 1, .store_fd = store};
    a = new_array(1);
    b = new_array(1);
    if (store < 0 || !a || !b || ksmpy_engine_new(&options, &engine) != 0 ||
        ksmpy_engine_new(&options, &other) != 0 || !watch(a, &region_a) ||
        ksmpy_register(other, (uintptr_t)b, bytes_of(PAGES), 0, &others) != 0)
        return false;
    scan(other, KSMPY_SCAN_EAGER);
    return true;
}

static void close_others(void)
{
    CHECK(engine->pages.store.head->live_frames == PAGES);
    CHECK(engine->pages.store.head->announced_count == 0);
    CHECK(filled(a, PAGES, 1) && filled(b, PAGES, 1));
    CHECK(ksmpy_release(other, others, 0) == 0 && ksmpy_engine_close(other) == 0);
    close_all();
    close(store);
}

static void what_others_wait_for_becomes_frames(void)
{
    REQUIRE(open_others());
    struct ksmpy_scan_result result = scan_awaited();
    CHECK(cuts && result.merged == PAGES && shared_of(region_a) == PAGES);
    CHECK(scan(other, KSMPY_SCAN_EAGER).merged == PAGES);
    close_others();
}

static void a_is_registered_again(void)
{
    CHECK(ksmpy_release(engine, region_a, 0) == 0 && filled(a, PAGES, 1));
    CHECK(watch(a, &region_a));
}

/* Others may make these frames, or wait for them from now on. */
static void claims_end_with_the_region(void)
{
    for (unsigned after = 0; after < 2; after++) {
        REQUIRE(open_others());
        at_cut = after;
        between = a_is_registered_again;
        scan_awaited();
        CHECK(!between);
        for (int i = 0; i < 3; i++) {
            scan(engine, KSMPY_SCAN_EAGER);
            scan(other, KSMPY_SCAN_EAGER);
        }
        CHECK(shared_of(region_a) == PAGES);
        close_others();
    }
}

/* ---- a thread that waits ---- */

static pthread_t thread;
static struct ksmpy_stats seen;

static void *count(void *nothing)
{
    CHECK(ksmpy_stats(engine, &seen) == 0);
    return nothing;
}

static bool starts;

int64_t __real_store_fill(struct store *store, uint32_t first, const void *pages, uint64_t n);
int64_t __wrap_store_fill(struct store *store, uint32_t first, const void *pages, uint64_t n)
{
    if (starts) {
        starts = false;
        CHECK(pthread_create(&thread, NULL, count, NULL) == 0);
        while (!atomic_load(&engine->waiting))
            sched_yield();
        stopped_clock += LOOK_NS;
    }
    return __real_store_fill(store, first, pages, n);
}

static void who_waits_gets_in_in_the_middle_of_a_run(void)
{
    REQUIRE(open_arrays());
    cuts = 0;
    starts = true;
    stopped_clock = __real_os_now_ns();
    scan(engine, KSMPY_SCAN_EAGER);
    stopped_clock = 0;
    CHECK(!starts && pthread_join(thread, NULL) == 0);
    CHECK(cuts == 1 && seen.merging_pages > 0 && seen.merging_pages < 2 * PAGES);
    CHECK(shared_of(region_a) == PAGES && shared_of(region_b) == PAGES);
    CHECK(filled(a, PAGES, 1) && filled(b, PAGES, 1));
    close_all();
}

/* ---- who waits, and does not get the processor by a yield ---- */

enum { ENOUGH = 1 << 16 };

static bool starves;
static unsigned yields, naps;

static void starve(unsigned *count, unsigned enough)
{
    if (starves && ++*count == enough) {
        atomic_store(&engine->waiting, 0);
        atomic_store(&engine->urgent, 0);
    }
}

int __real_sched_yield(void);
int __wrap_sched_yield(void)
{
    starve(&yields, ENOUGH);
    return __real_sched_yield();
}

int __real_nanosleep(const struct timespec *span, struct timespec *rest);
int __wrap_nanosleep(const struct timespec *span, struct timespec *rest)
{
    starve(&naps, 1);
    return __real_nanosleep(span, rest);
}

static void hand_over(void (*way_to)(void))
{
    yields = naps = 0;
    starves = true;
    atomic_store(&engine->waiting, 1);
    way_to();
    starves = false;
    CHECK(naps == 1 && yields < ENOUGH && !atomic_load(&engine->waiting));
}

static void let_in(void)
{
    engine_let_others_in(engine);
}

static void end_slice(void)
{
    uint64_t deadline = 0;
    engine_end_slice(engine, &deadline);
}

static void leave_pass(void)
{
    __real_pass_lets_others_in(engine);
}

static void who_waits_gets_the_processor_too(void)
{
    REQUIRE(open_arrays());
    engine_lock(engine);
    hand_over(let_in);
    hand_over(end_slice);
    hand_over(leave_pass);
    engine_unlock(engine);
    close_all();
}

/* ---- who counts ---- */

static struct counting counting;

static void end_count(void)
{
    counting.slice_end_ns = 0;
    engine_end_count(engine, &counting);
}

static void who_counts_lets_in_who_wants_it_for_a_moment(void)
{
    REQUIRE(open_arrays());
    engine_lock(engine);
    for (int i = 0; i < 8; i++) {
        atomic_store(&engine->urgent, 1);
        hand_over(end_count);
    }
    engine_unlock(engine);
    close_all();
}

/* An unmerge between two of its slices, for one. */
static void who_goes_on_with_something_long_has_every_fourth_slice(void)
{
    REQUIRE(open_arrays());
    counting = (struct counting){0};
    engine_lock(engine);
    for (int i = 0; i < 2; i++) {
        atomic_store(&engine->waiting, 1);
        for (int slice = 0; slice < 3; slice++)
            end_count();
        CHECK(atomic_load(&engine->waiting) == 1); /* nobody was let in */
        hand_over(end_count);
    }
    engine_unlock(engine);
    close_all();
}

static _Atomic unsigned locked; /* how often the engine was, by any thread */

int __real_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
    locked += engine && mutex == &engine->lock;
    return __real_pthread_mutex_lock(mutex);
}

static void counters_take_one_wait(void)
{
    struct ksmpy_stats stats;
    struct ksmpy_region_stats region;
    REQUIRE(open_arrays());
    scan(engine, KSMPY_SCAN_EAGER);
    a[0] ^= 1;
    locked = 0;
    CHECK(ksmpy_exact_stats(engine, &stats) == 0 && locked == 1);
    CHECK(stats.merging_pages == 2 * PAGES - 1 && stats.vmas > 0);
    b[0] ^= 2;
    locked = 0;
    CHECK(ksmpy_region_stats(engine, region_b, &region, &stats) == 0 && locked == 1);
    CHECK(region.merging_pages == PAGES - 1 && stats.merging_pages == 2 * (PAGES - 1));
    CHECK(ksmpy_region_stats(engine, 12345, &region, &stats) == -ENOENT);
    close_all();
}

/* ---- what others do meanwhile ---- */

enum { CUTS = 5 }; /* a run of pairs has so many at least */

static void with(void (*action)(void), unsigned after)
{
    at_cut = after;
    between = action;
    scan_awaited();
    CHECK(!between);
}

static void fork_and_look(void)
{
    pid_t child = fork();
    if (child == 0) {
        bool right = filled(a, PAGES, 1) && filled(b, PAGES, 1) && !engine->scanner.run.n;
        right = right && ksmpy_release(engine, region_a, 0) == 0;
        right = right && ksmpy_release(engine, region_b, 0) == 0;
        _exit(right && filled(a, PAGES, 1) && filled(b, PAGES, 1) ? 0 : 1);
    }
    int status = 1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static void a_child_has_the_bytes_and_no_run(void)
{
    for (unsigned after = 0; after < CUTS; after++) {
        REQUIRE(open_arrays());
        with(fork_and_look, after);
        CHECK(shared_of(region_a) == PAGES && shared_of(region_b) == PAGES);
        CHECK(filled(a, PAGES, 1) && filled(b, PAGES, 1));
        close_all();
    }
}

static void b_dies(void)
{
    CHECK(ksmpy_release(engine, region_b, 1) == 0);
    memset(b, 1, bytes_of(PAGES));
    CHECK(sound(engine));
}

static void a_goes(void)
{
    CHECK(ksmpy_release(engine, region_a, 0) == 0 && filled(a, PAGES, 1));
    memset(a, 1, bytes_of(PAGES));
    CHECK(sound(engine));
}

/* Its ids are another region's at once. */
static void b_is_another(void)
{
    b_dies();
    CHECK(watch(b, &region_b));
}

static void a_is_another(void)
{
    a_goes();
    CHECK(watch(a, &region_a));
}

static bool is_ones(const uint8_t *memory)
{
    return memory[0] == 1 && memcmp(memory, memory + 1, bytes_of(PAGES) - 1) == 0;
}

static void regions_go_in_the_middle(void)
{
    for (unsigned after = 0; after < CUTS; after++) {
        for (int again = 0; again < 2; again++) {
            REQUIRE(open_arrays());
            with(again ? b_is_another : b_dies, after);
            CHECK(filled(a, PAGES, 1) && is_ones(b));
            close_all();
            REQUIRE(open_arrays());
            with(again ? a_is_another : a_goes, after);
            CHECK(filled(b, PAGES, 1) && is_ones(a));
            close_all();
        }
    }
}

static void a_comes_back(void)
{
    CHECK(ksmpy_unmerge_region(engine, region_a) == 0);
    CHECK(shared_of(region_a) == 0 && sound(engine));
}

static void what_comes_back_is_not_merged_after_that(void)
{
    for (unsigned after = 0; after < CUTS; after++) {
        REQUIRE(open_arrays());
        with(a_comes_back, after);
        CHECK(shared_of(region_a) == 0);
        CHECK(filled(a, PAGES, 1) && filled(b, PAGES, 1));
        scan(engine, KSMPY_SCAN_EAGER);
        CHECK(shared_of(region_a) == PAGES && shared_of(region_b) == PAGES);
        close_all();
    }
}

static void write_to_last(void)
{
    a[bytes_of(PAGES - 1)] ^= 1;
    b[bytes_of(PAGES - 2)] ^= 1;
}

static void what_is_written_meanwhile_keeps_its_bytes(void)
{
    for (unsigned after = 0; after < CUTS; after++) {
        REQUIRE(open_arrays());
        with(write_to_last, after);
        CHECK(shared_of(region_a) >= PAGES - 2 && shared_of(region_b) >= PAGES - 2);
        write_to_last();
        CHECK(filled(a, PAGES, 1) && filled(b, PAGES, 1));
        close_all();
    }
}

static void interrupt(void)
{
    ksmpy_interrupt(engine);
}

static void an_interrupted_run_leaves_no_frame_behind(void)
{
    for (unsigned after = 0; after < CUTS; after++) {
        struct ksmpy_scan_result result;
        REQUIRE(open_arrays());
        at_cut = after;
        between = interrupt;
        begin();
        CHECK(ksmpy_scan(engine, 4 * PAGES, KSMPY_SCAN_EAGER | KSMPY_SCAN_RESTART, &result) == 0);
        end();
        uint64_t shared = shared_of(region_a) + shared_of(region_b);
        CHECK(sound(engine) && !engine->scanner.run.n && shared && shared < 2 * PAGES);
        CHECK(engine->pages.store.head->shared_pages == shared);
        scan(engine, KSMPY_SCAN_EAGER);
        CHECK(shared_of(region_a) == PAGES && shared_of(region_b) == PAGES);
        close_all();
    }
}

/* Nobody has the lock while frames are put on huge pages, so that their run may end meanwhile. */
static void runs_end_while_their_frames_become_huge(void)
{
    void (*const actions[])(void) = {b_dies, a_goes, b_is_another, a_is_another, a_comes_back};
    for (unsigned i = 0; i < sizeof actions / sizeof actions[0]; i++) {
        REQUIRE(open_arrays());
        while_collapsing = actions[i];
        scan(engine, KSMPY_SCAN_EAGER);
        CHECK(!while_collapsing && !engine->scanner.run.n);
        CHECK(engine->pages.store.head->shared_frames == engine->pages.store.head->live_frames);
        CHECK(i == 4 || is_ones(i % 2 ? a : b));
        CHECK(filled(i % 2 ? b : a, PAGES, 1));
        close_all();
    }
}

/* Slices that end by time, each at a huge page, do not end the run that is being collected. */
static void runs_go_on_behind_a_long_slice(void)
{
    REQUIRE(open_arrays());
    collapsed = 0;
    stopped_clock = __real_os_now_ns();
    look_ns = LOOK_NS;
    scan(engine, KSMPY_SCAN_EAGER);
    look_ns = stopped_clock = 0;
    CHECK(!collapsed || collapsed == 2 * HUGE_PAGES);
    CHECK(shared_of(region_a) == PAGES && shared_of(region_b) == PAGES && sound(engine));
    CHECK(filled(a, PAGES, 1) && filled(b, PAGES, 1));
    close_all();
}

static void run_all(void)
{
    RUN(runs_go_on_behind_a_long_slice);
    RUN(all_pairs_are_merged);
    RUN(the_page_behind_a_run_is_visited_once);
    RUN(pages_go_onto_frames_that_are_there);
    RUN(equal_neighbours_are_merged);
    RUN(zeros_go_to_the_zero_page);
    RUN(written_pages_come_back);
    RUN(what_others_wait_for_becomes_frames);
    RUN(claims_end_with_the_region);
    RUN(who_waits_gets_in_in_the_middle_of_a_run);
    RUN(who_waits_gets_the_processor_too);
    RUN(who_counts_lets_in_who_wants_it_for_a_moment);
    RUN(who_goes_on_with_something_long_has_every_fourth_slice);
    RUN(counters_take_one_wait);
    RUN(a_child_has_the_bytes_and_no_run);
    RUN(regions_go_in_the_middle);
    RUN(what_comes_back_is_not_merged_after_that);
    RUN(what_is_written_meanwhile_keeps_its_bytes);
    RUN(an_interrupted_run_leaves_no_frame_behind);
    RUN(runs_end_while_their_frames_become_huge);
}

int main(void)
{
    const int ways[][2] = {{KSMPY_FREEZE_UFFD_WP, KSMPY_TRACKING_WP_ASYNC},
                           {KSMPY_FREEZE_UFFD_MOVE, KSMPY_TRACKING_WP_ASYNC},
                           {KSMPY_FREEZE_UFFD_REMAP, KSMPY_TRACKING_CHECKSUM},
                           {KSMPY_FREEZE_SIGNAL, KSMPY_TRACKING_CHECKSUM}};
    return finish_in(ways, sizeof ways / sizeof ways[0], &way, &tracking, run_all);
}
