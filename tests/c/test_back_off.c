/*
 * Memory that rests for some passes and is then written all over, again and again, under a clock
 * of the test's own: how many faults that takes, and when it is merged all the same.
 */
#include <string.h>
#include <sys/resource.h>

#include "base/pages.h"
#include "check.h"
#include "engine/engine.h"
#include "ksmpy.h"
#include "os/map.h"
#include "pages.h"

enum {
    N = 2 * CHUNK + 100, /* two whole chunks and a part of one */
    PASS_MS = 50,
    ROUND = 10, /* passes from one time that all is written to the next one: half a second */
    LEARNT = 4, /* such rounds after which that is known */
    LONGEST = 4100 / PASS_MS /* passes that nothing has to rest for longer than */
};

static int way, tracking;
static ksmpy_engine *engine;
static uint8_t *a, *b;
static uint32_t written; /* how often all was */

/* ---- the scene ---- */

static uint64_t now_ns = (uint64_t)1 << 40;

uint64_t __wrap_os_now_ns(void)
{
    return now_ns += 1000; /* who waits for a time has to see it come */
}

static void pass(int flags)
{
    now_ns += (uint64_t)PASS_MS * 1000000;
    scan(engine, flags);
}

static void passes(unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        pass(KSMPY_SCAN_BACK_OFF);
}

static uint64_t sharing(void)
{
    struct ksmpy_stats out;
    ksmpy_refresh(engine);
    ksmpy_stats(engine, &out);
    return out.pages_sharing;
}

static long faults(void)
{
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_minflt;
}

/* Writes to the first n pages of each chunk of both, from a page on. */
static void write_from(uint64_t page, uint64_t n)
{
    written++;
    for (; page < N; page++)
        if (page % CHUNK < n)
            a[bytes_of(page)] = b[bytes_of(page)] = (uint8_t)written;
}

/* From the first page on; how many faults that takes. */
static long write_some(uint64_t n)
{
    long before = faults();
    write_from(0, n);
    return faults() - before;
}

static bool few(long count)
{
    return count < N / 16;
}

static bool open_two(void)
{
    uint32_t region;
    engine = engine_of(way, tracking, 1);
    a = os_alloc(bytes_of(N));
    b = os_alloc(bytes_of(N));
    if (!engine || !a || !b)
        return false;
    fill(a, N, 1);
    fill(b, N, 1);
    written = 0;
    return ksmpy_register(engine, (uintptr_t)a, bytes_of(N), 0, &region) == 0 &&
           ksmpy_register(engine, (uintptr_t)b, bytes_of(N), 0, &region) == 0;
}

static void close_two(void)
{
    CHECK(sound(engine) && memcmp(a, b, bytes_of(N)) == 0);
    while (engine->pages.first_region != NO_REGION)
        REQUIRE(ksmpy_release(engine, engine->pages.first_region, 0) == 0);
    CHECK(ksmpy_engine_close(engine) == 0);
    os_unmap(a, bytes_of(N));
    os_unmap(b, bytes_of(N));
}

static void rewrite(unsigned rounds)
{
    for (unsigned i = 0; i < rounds; i++) {
        write_some(CHUNK);
        passes(ROUND);
    }
}

/* Both, of which it is known that they are written every half second. */
static bool open_learnt(void)
{
    if (!open_two())
        return false;
    passes(ROUND);
    rewrite(LEARNT);
    return true;
}

/* ---- what becomes of it ---- */

static void what_is_written_anew_takes_no_faults(void)
{
    REQUIRE(open_two());
    passes(ROUND);
    CHECK(sharing() == N && !few(write_some(CHUNK)));
    passes(ROUND);
    rewrite(LEARNT - 1);
    for (int i = 0; i < 20; i++) {
        CHECK(few(write_some(CHUNK)));
        for (int j = 0; j < ROUND; j++) {
            passes(1);
            CHECK(sharing() == 0);
        }
    }
    close_two();
}

static void what_rests_for_longer_is_merged(void)
{
    REQUIRE(open_learnt());
    CHECK(sharing() == 0);
    passes(ROUND + 2);
    CHECK(sharing() == N);
    close_two();
}

/* The longest rest that is asked for is as long as that of memory that was written every 3 s. */
static void nothing_has_to_rest_for_ever(void)
{
    REQUIRE(open_learnt());
    for (int i = 0; i < 5; i++) {
        passes(3000 / PASS_MS);
        write_some(CHUNK);
    }
    passes(3000 / PASS_MS);
    CHECK(sharing() == 0);
    passes(LONGEST - 3000 / PASS_MS + 2);
    CHECK(sharing() == N);
    close_two();
}

static void what_is_loaded_once_is_not_held_up(void)
{
    unsigned taken[2] = {0};
    for (int backs_off = 0; backs_off < 2; backs_off++) {
        REQUIRE(open_two());
        do
            pass(backs_off ? KSMPY_SCAN_BACK_OFF : 0);
        while (sharing() < N && ++taken[backs_off] < LONGEST);
        write_some(CHUNK); /* loaded over what it was initialised with */
        passes(250 / PASS_MS + 3);
        CHECK(sharing() == N);
        close_two();
    }
    CHECK(taken[0] == taken[1] && taken[0] < 3);
}

static void who_rested_long_is_trusted_again(void)
{
    REQUIRE(open_learnt());
    passes(2 * LONGEST);
    CHECK(sharing() == N);
    write_some(CHUNK);
    passes(3);
    CHECK(sharing() == N);
    close_two();
    REQUIRE(open_learnt()); /* and when a part of it is written first */
    passes(2 * LONGEST);
    write_some(CHUNK / 2);
    passes(4);
    CHECK(sharing() == N);
    write_some(CHUNK);
    passes(250 / PASS_MS + 3);
    CHECK(sharing() == N);
    close_two();
}

/* As if it was never left alone: an eager pass merges at once, another one in its turn. */
static void who_asks_for_a_pass_need_not_wait(void)
{
    REQUIRE(open_learnt());
    write_some(CHUNK);
    passes(1);
    pass(KSMPY_SCAN_EAGER);
    CHECK(sharing() == N);
    close_two();
    REQUIRE(open_learnt());
    write_some(CHUNK);
    passes(1);
    pass(0);
    CHECK(sharing() == N);
    close_two();
}

/* In the middle of a chunk whose neighbours are left alone. */
static void an_eager_call_goes_on_where_another_one_stopped(void)
{
    struct ksmpy_scan_result result;
    REQUIRE(open_two());
    passes(ROUND);
    for (int i = 0; i < LEARNT; i++) {
        write_from(CHUNK, CHUNK);
        passes(ROUND);
    }
    a[0] = b[0] = 200;
    write_from(CHUNK, CHUNK);
    passes(2);
    a[0] = b[0] = 201;
    now_ns += (uint64_t)PASS_MS * 1000000;
    CHECK(ksmpy_scan(engine, 1, KSMPY_SCAN_BACK_OFF, &result) == 0 && result.scanned == 1);
    CHECK(sharing() == CHUNK - 1 && !result.full);
    CHECK(ksmpy_scan(engine, UINT64_MAX, KSMPY_SCAN_EAGER, &result) == 0 && result.full);
    CHECK(sharing() >= N - 1);
    close_two();
}

/* A part that rests while the other one is written: a sample of it lets the chunk be asked about. */
static void a_part_that_rests_is_merged(void)
{
    enum { HALF = CHUNK / 2 };
    REQUIRE(open_learnt());
    for (int i = 0; i < 16; i++) {
        write_some(HALF);
        passes(ROUND);
    }
    CHECK(sharing() >= 2 * HALF);
    close_two();
}

/* Memory of which a part is written now and then is no case of this. */
static void a_part_that_is_written_is_asked_about(void)
{
    REQUIRE(open_two());
    passes(ROUND);
    for (int i = 0; i < 8; i++) {
        write_some(CHUNK / 8);
        passes(1);
        CHECK(sharing() >= N - N / 4);
        passes(2);
        CHECK(sharing() == N);
        passes(2 * LONGEST);
    }
    close_two();
}

/* How often a few pages of each chunk leave their frames while they are written each half second. */
static unsigned left_frames_in(unsigned rounds)
{
    unsigned left = 0;
    for (unsigned i = 0; i < rounds; i++) {
        left += sharing() == N;
        write_some(8);
        passes(ROUND);
    }
    return left;
}

/* To merge it over and over saves nothing; what was written there is known all the same, in time. */
static void a_part_that_leaves_its_frames_again_and_again_stays(void)
{
    REQUIRE(open_two());
    passes(ROUND);
    CHECK(left_frames_in(8) <= 3);
    CHECK(left_frames_in(24) == 0 && sharing() == N - 3 * 8);
    passes(LONGEST);
    CHECK(sharing() == N);
    passes(2 * LONGEST); /* then it is trusted again */
    write_some(8);
    passes(3);
    CHECK(sharing() == N);
    close_two();
}

/* The first time is none again, also where the ticks that are counted have just begun anew. */
static void a_part_that_leaves_its_frames_once_is_merged_again(void)
{
    now_ns = (now_ns | (((uint64_t)1 << 40) - 1)) + 1;
    REQUIRE(open_two());
    passes(ROUND);
    CHECK(sharing() == N);
    write_some(8);
    passes(3);
    CHECK(sharing() == N);
    close_two();
}

enum { SHORT_MS = 5, SECOND = 1000 / SHORT_MS };

/* Half of each chunk from a page on is written in each pass: how many faults that takes in n of them. */
static long write_halves_from(uint64_t page, unsigned n)
{
    long taken = 0;
    for (unsigned i = 0; i < n; i++) {
        long before = faults();
        write_from(page, CHUNK / 2);
        taken += faults() - before;
        now_ns += (uint64_t)SHORT_MS * 1000000;
        scan(engine, KSMPY_SCAN_BACK_OFF);
    }
    return taken;
}

/* The other half is merged all the same, and what comes to rest. */
static void a_part_that_is_written_all_the_time_takes_few_faults(void)
{
    REQUIRE(open_two());
    write_halves_from(0, SECOND);
    CHECK(sharing() == N - 2 * (CHUNK / 2) - 100);
    CHECK(write_halves_from(0, SECOND) < SECOND * N / 8);
    CHECK(sharing() == N - 2 * (CHUNK / 2) - 100);
    passes(ROUND);
    CHECK(sharing() == N);
    close_two();
}

/* And an eager call that goes on where another one has stopped knows what was written there. */
static void an_eager_call_asks_about_what_was_put_off(void)
{
    struct ksmpy_scan_result result;
    uint64_t unlike = bytes_of(2 * CHUNK - 1); /* which wait for an equal one, in the other half */
    REQUIRE(open_two());
    a[unlike]++;
    write_halves_from(CHUNK, SECOND);
    a[0] = b[0] = 200;
    now_ns += (uint64_t)SHORT_MS * 1000000;
    CHECK(ksmpy_scan(engine, 1, KSMPY_SCAN_BACK_OFF, &result) == 0 && result.scanned == 1);
    CHECK(!result.full);
    a[unlike] = b[unlike] = 200;
    CHECK(ksmpy_scan(engine, UINT64_MAX, KSMPY_SCAN_EAGER, &result) == 0 && result.full);
    CHECK(sharing() == N - 1);
    close_two();
}

static uint64_t told(void)
{
    struct ksmpy_stats out;
    ksmpy_counters(engine, &out);
    return out.pages_sharing;
}

/* Also which of the pages on frames have copies of their own by then. */
static void an_eager_call_is_told_of_copies_that_were_put_off(void)
{
    struct ksmpy_scan_result result;
    REQUIRE(open_two());
    uint8_t *merged = a + bytes_of(2 * CHUNK - 1);
    write_halves_from(CHUNK, SECOND);
    a[0] = b[0] = 200;
    ++*merged;
    now_ns += (uint64_t)SHORT_MS * 1000000;
    CHECK(ksmpy_scan(engine, 1, KSMPY_SCAN_BACK_OFF, &result) == 0 && result.scanned == 1);
    CHECK(ksmpy_scan(engine, UINT64_MAX, KSMPY_SCAN_EAGER, &result) == 0 && result.full);
    CHECK(told() == N - 2 && sharing() == N - 2); /* the first page waits for the next pass */
    --*merged;
    close_two();
}

static void pass_after(unsigned ms)
{
    now_ns += (uint64_t)ms * 1000000;
    scan(engine, KSMPY_SCAN_BACK_OFF);
}

/* The kernel tells once that it was written.  The pass that it was told ends before it gets there. */
static void what_is_put_off_then_was_not_told_in_vain(void)
{
    enum { DUE_MS = 200 };
    struct ksmpy_scan_result result;
    REQUIRE(open_two());
    write_halves_from(0, SECOND);
    write_some(CHUNK / 2);
    a[bytes_of(CHUNK - 1)]++;
    now_ns += (uint64_t)DUE_MS * 1000000;
    int flags = KSMPY_SCAN_BACK_OFF | KSMPY_SCAN_RESTART;
    CHECK(ksmpy_scan(engine, 1, flags, &result) == 0 && result.scanned == 1 && !result.full);
    pass_after(SHORT_MS);
    pass_after(DUE_MS);
    CHECK(told() == N - 1 && sharing() == N - 1);
    a[bytes_of(CHUNK - 1)]--;
    close_two();
}

static void run_all(void)
{
    RUN(what_is_written_anew_takes_no_faults);
    RUN(what_rests_for_longer_is_merged);
    RUN(nothing_has_to_rest_for_ever);
    RUN(what_is_loaded_once_is_not_held_up);
    RUN(who_rested_long_is_trusted_again);
    RUN(who_asks_for_a_pass_need_not_wait);
    RUN(an_eager_call_goes_on_where_another_one_stopped);
    RUN(a_part_that_rests_is_merged);
    RUN(a_part_that_is_written_is_asked_about);
    RUN(a_part_that_leaves_its_frames_again_and_again_stays);
    RUN(a_part_that_leaves_its_frames_once_is_merged_again);
    RUN(a_part_that_is_written_all_the_time_takes_few_faults);
    RUN(an_eager_call_asks_about_what_was_put_off);
    RUN(an_eager_call_is_told_of_copies_that_were_put_off);
    RUN(what_is_put_off_then_was_not_told_in_vain);
}

int main(void)
{
    static const int ways[][2] = {{KSMPY_FREEZE_UFFD_WP, KSMPY_TRACKING_WP_ASYNC},
                                  {KSMPY_FREEZE_UFFD_MOVE, KSMPY_TRACKING_WP_ASYNC},
                                  {KSMPY_FREEZE_SIGNAL, KSMPY_TRACKING_WP_ASYNC}};
    return finish_in(ways, sizeof ways / sizeof ways[0], &way, &tracking, run_all);
}
