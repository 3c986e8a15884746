/*
 * Pages in no order are planned, and exchanged some slices later: here others do their worst in
 * between, on every run.
 */
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/pages.h"
#include "check.h"
#include "engine/engine.h"
#include "engine/locks.h"
#include "ksmpy.h"
#include "merge/plan.h"
#include "os/map.h"
#include "pages.h"
#include "store/pool.h"

enum { PAGES = 1024, STEP = 5 /* no two neighbours of one array are neighbours in the other */ };

static ksmpy_engine *engine;
static uint8_t *a, *b;
static uint32_t region_a, region_b;
static int way, tracking;

/* Where mappings are scarce nothing is planned. */
uint64_t __wrap_os_max_map_count(void)
{
    return 65530;
}

/* ---- while something is planned ---- */

static void (*between)(void);
static uint64_t exchanged; /* of all pages so many are by then */

void __real_pass_lets_others_in(ksmpy_engine *sliced);
void __wrap_pass_lets_others_in(ksmpy_engine *sliced)
{
    void (*action)(void) = between;
    const struct plan *plan = &sliced->merger.plan;
    if (!action || plan->n < 2 * PAGES || plan->done < exchanged) {
        __real_pass_lets_others_in(sliced);
        return;
    }
    between = NULL;
    engine_unlock(sliced);
    action();
    engine_lock(sliced);
}

/* ---- the scene ---- */

static uint32_t seed_of(unsigned page)
{
    return 1 + page * STEP % PAGES;
}

static void fill_scattered(uint8_t *memory)
{
    for (unsigned page = 0; page < PAGES; page++)
        fill(memory + bytes_of(page), 1, seed_of(page));
}

static bool is_scattered(const uint8_t *memory, unsigned but_for)
{
    for (unsigned page = 0; page < PAGES; page++)
        if (page != but_for && !filled(memory + bytes_of(page), 1, seed_of(page)))
            return false;
    return true;
}

static bool watch(uint8_t *memory, uint32_t *region)
{
    return ksmpy_register(engine, (uintptr_t)memory, bytes_of(PAGES), 0, region) == 0;
}

static bool open_pairs(void)
{
    engine = engine_of(way, tracking, 1);
    a = os_alloc(bytes_of(PAGES));
    b = os_alloc(bytes_of(PAGES));
    if (!engine || !a || !b)
        return false;
    fill(a, PAGES, 1);
    fill_scattered(b);
    return watch(a, &region_a) && watch(b, &region_b);
}

static void close_all(void)
{
    CHECK(between == NULL && plan_is_empty(&engine->merger.plan));
    CHECK(sound(engine));
    while (engine->pages.first_region != NO_REGION)
        REQUIRE(ksmpy_release(engine, engine->pages.first_region, 0) == 0);
    CHECK(sound(engine) && store_bytes(&engine->pages.store) == 0);
    CHECK(ksmpy_engine_close(engine) == 0);
    os_unmap(a, bytes_of(PAGES));
    os_unmap(b, bytes_of(PAGES));
    exchanged = 0;
}

static uint64_t shared_of(uint32_t region)
{
    return region_at(&engine->pages, region)->pages_in[PAGE_SHARED];
}

static void scan_with(void (*action)(void), uint64_t after)
{
    exchanged = after;
    between = action;
    scan(engine, KSMPY_SCAN_EAGER);
}

/* ---- what may happen ---- */

static void nothing(void)
{
    CHECK(sound(engine) && shared_of(region_a) == 0 && shared_of(region_b) == 0);
}

static void all_of_them_are_merged(void)
{
    REQUIRE(open_pairs());
    scan_with(nothing, 0);
    CHECK(shared_of(region_a) == PAGES && shared_of(region_b) == PAGES);
    CHECK(engine->pages.store.head->live_frames == PAGES);
    for (uint32_t id = region_at(&engine->pages, region_b)->base, i = 1; i < PAGES; i++)
        CHECK(page_record(&engine->pages, id + i)->link ==
              page_record(&engine->pages, id + i - 1)->link + 1);
    CHECK(filled(a, PAGES, 1) && is_scattered(b, PAGES));
    close_all();
}

static void count(void)
{
    struct ksmpy_stats stats;
    CHECK(ksmpy_stats(engine, &stats) == 0 && sound(engine));
    CHECK(stats.pages_sharing <= stats.merging_pages);
    CHECK(stats.merging_pages > 0 && stats.merging_pages < 2 * PAGES);
}

static void no_saving_is_claimed_that_is_not_there(void)
{
    REQUIRE(open_pairs());
    scan_with(count, 1);
    CHECK(shared_of(region_a) == PAGES && shared_of(region_b) == PAGES);
    close_all();
}

static void fork_and_look(void)
{
    pid_t child = fork();
    if (child == 0) {
        bool right = plan_is_empty(&engine->merger.plan) && filled(a, PAGES, 1);
        for (uint32_t i = 0; i < PAGES; i++)
            right = right && !page_is_planned(page_record(
                                 &engine->pages, region_at(&engine->pages, region_a)->base + i));
        right = right && ksmpy_release(engine, region_a, 0) == 0;
        right = right && ksmpy_release(engine, region_b, 0) == 0;
        _exit(right && filled(a, PAGES, 1) && is_scattered(b, PAGES) ? 0 : 1);
    }
    int status = 1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static void a_child_has_nothing_planned(void)
{
    for (uint64_t after = 0; after < 2; after++) {
        REQUIRE(open_pairs());
        scan_with(fork_and_look, after);
        scan(engine, KSMPY_SCAN_EAGER);
        CHECK(shared_of(region_a) == PAGES && shared_of(region_b) == PAGES);
        CHECK(filled(a, PAGES, 1) && is_scattered(b, PAGES));
        ksmpy_unmerge(engine); /* what the child could map is reaped */
        close_all();
    }
}

static void a_goes(void)
{
    CHECK(ksmpy_release(engine, region_a, 0) == 0 && filled(a, PAGES, 1));
    memset(a, 1, bytes_of(PAGES));
}

static void a_dies_and_another_comes(void)
{
    CHECK(ksmpy_release(engine, region_a, 1) == 0);
    os_unmap(a, bytes_of(PAGES));
    CHECK(os_claim((uintptr_t)a, PAGES) == 0 && os_commit(a, bytes_of(PAGES)) == 0);
    memset(a, 1, bytes_of(PAGES));
    CHECK(watch(a, &region_a));
}

static bool is_ones(const uint8_t *memory)
{
    return memory[0] == 1 && memcmp(memory, memory + 1, bytes_of(PAGES) - 1) == 0;
}

static void b_is_merged_alone(void (*action)(void))
{
    for (uint64_t after = 0; after < 2; after++) {
        REQUIRE(open_pairs());
        scan_with(action, after);
        CHECK(shared_of(region_b) == PAGES && is_scattered(b, PAGES) && is_ones(a));
        close_all();
    }
}

static void a_region_that_goes_leaves_what_it_has_joined(void)
{
    b_is_merged_alone(a_goes);
}

static void a_region_in_its_place_is_not_merged_for_it(void)
{
    b_is_merged_alone(a_dies_and_another_comes);
}

static void a_comes_back(void)
{
    CHECK(ksmpy_unmerge_region(engine, region_a) == 0);
    CHECK(shared_of(region_a) == 0);
}

static void what_comes_back_is_not_exchanged_after_that(void)
{
    for (uint64_t after = 0; after < 2; after++) {
        REQUIRE(open_pairs());
        scan_with(a_comes_back, after);
        CHECK(shared_of(region_a) == 0 && filled(a, PAGES, 1) && is_scattered(b, PAGES));
        close_all();
    }
}

static void write_to_both(void)
{
    a[bytes_of(PAGES - 1)] ^= 1;
    b[bytes_of(PAGES - 2)] ^= 1;
}

static void what_is_written_meanwhile_keeps_its_bytes(void)
{
    for (uint64_t after = 0; after < 2; after++) {
        REQUIRE(open_pairs());
        scan_with(write_to_both, after);
        if (!after)
            CHECK(shared_of(region_a) == PAGES - 1 && shared_of(region_b) == PAGES - 1);
        write_to_both();
        CHECK(filled(a, PAGES, 1) && is_scattered(b, PAGES));
        close_all();
    }
}

static void interrupt(void)
{
    ksmpy_interrupt(engine);
}

static void an_interrupted_call_leaves_no_frame_behind(void)
{
    for (uint64_t after = 0; after < 2; after++) {
        struct ksmpy_scan_result result;
        REQUIRE(open_pairs());
        exchanged = after;
        between = interrupt;
        CHECK(ksmpy_scan(engine, 4 * PAGES, KSMPY_SCAN_EAGER | KSMPY_SCAN_RESTART, &result) == 0);
        uint64_t shared = shared_of(region_a) + shared_of(region_b);
        CHECK(sound(engine) && engine->pages.store.head->shared_pages == shared);
        CHECK(engine->pages.store.head->live_frames <= shared && shared < 2 * PAGES);
        scan(engine, KSMPY_SCAN_EAGER);
        CHECK(shared_of(region_a) == PAGES && shared_of(region_b) == PAGES);
        close_all();
    }
}

/* Each call ends with what it has found. */
static void a_call_for_few_pages_exchanges_them(void)
{
    struct ksmpy_scan_result result;
    REQUIRE(open_pairs());
    CHECK(ksmpy_scan(engine, PAGES, KSMPY_SCAN_EAGER, &result) == 0);
    for (uint64_t done = 0; done < PAGES; done += 64) {
        CHECK(ksmpy_scan(engine, 64, KSMPY_SCAN_EAGER, &result) == 0);
        CHECK(shared_of(region_b) == done + 64 && plan_is_empty(&engine->merger.plan));
    }
    CHECK(result.full == 1);
    close_all();
}

static void run_all(void)
{
    RUN(all_of_them_are_merged);
    RUN(no_saving_is_claimed_that_is_not_there);
    RUN(a_child_has_nothing_planned);
    RUN(a_region_that_goes_leaves_what_it_has_joined);
    RUN(a_region_in_its_place_is_not_merged_for_it);
    RUN(what_comes_back_is_not_exchanged_after_that);
    RUN(what_is_written_meanwhile_keeps_its_bytes);
    RUN(an_interrupted_call_leaves_no_frame_behind);
    RUN(a_call_for_few_pages_exchanges_them);
}

int main(void)
{
    const int ways[][2] = {{KSMPY_FREEZE_UFFD_WP, KSMPY_TRACKING_WP_ASYNC},
                           {KSMPY_FREEZE_UFFD_MOVE, KSMPY_TRACKING_WP_ASYNC},
                           {KSMPY_FREEZE_UFFD_REMAP, KSMPY_TRACKING_CHECKSUM},
                           {KSMPY_FREEZE_SIGNAL, KSMPY_TRACKING_CHECKSUM}};
    return finish_in(ways, sizeof ways / sizeof ways[0], &way, &tracking, run_all);
}
