/* Extents of the store's file: which frames keep their memory, for how long, and for whom. */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/pages.h"
#include "check.h"
#include "engine/engine.h"
#include "holes.h"
#include "ksmpy.h"
#include "no_memory.h"
#include "os/arena.h"
#include "os/files.h"
#include "os/folios.h"
#include "os/map.h"
#include "os/pagemap.h"
#include "os/probe.h"
#include "pages.h"
#include "store/collapse.h"
#include "store/extents.h"
#include "store/frames.h"
#include "store/layout.h"
#include "store/pool.h"
#include "store/references.h"
#include "store/spare.h"
#include "store/store.h"

enum { EXTENTS = 4, FRAMES = EXTENTS * HUGE_PAGES };

static ksmpy_engine *engine;
static struct store *store;
static uint32_t first;

static uint8_t expected[PAGE_SIZE];

/* What frame i of the first ones was filled with: no byte is zero but for one, if any. */
static const uint8_t *bytes_of_frame(uint32_t i, bool some_zero)
{
    memset(expected, (int)(i % 250) + 1, PAGE_SIZE);
    expected[0] = (uint8_t)(i / 250 + 1);
    if (some_zero)
        expected[PAGE_SIZE / 2] = 0;
    return expected;
}

/* Frames of whole huge pages, which are theirs, and are filled: from `zeros` on with a zero each. */
static bool open_filled(uint64_t n, uint32_t zeros)
{
    uint64_t wanted = n, huge;
    bool extents;
    int error;
    engine = engine_of(KSMPY_FREEZE_AUTO, KSMPY_TRACKING_AUTO, 1);
    if (!engine)
        return false;
    store = &engine->pages.store;
    first = store_take_in_step(store, 0, 0, &n, &extents);
    huge = extents_collapse(store, first, n, &error);
    extents_collapsed(store, first, n, huge, error);
    for (uint32_t i = 0; i < n; i++)
        store_fill(store, first + i, bytes_of_frame(i, i >= zeros), 1);
    return first % EXTENT == 0 && n == wanted && !error;
}

static bool open_extents(void)
{
    return open_filled(FRAMES, 0);
}

#define NEED_HUGE_PAGES                                                                            \
    do {                                                                                           \
        if (os_try_huge_file() < 0)                                                                \
            SKIP("no huge pages for files in memory");                                             \
    } while (0)

static void close_extents(void)
{
    CHECK(sound(engine) && store_bytes(store) == 0);
    CHECK(store->head->spare_frames == 0 && store->head->huge_extents == 0);
    CHECK(ksmpy_engine_close(engine) == 0);
}

/* As the next slice does, some time later. */
static void flush(void)
{
    store->letting_go_ms = 0;
    store_flush(store);
    CHECK(sound(engine));
}

static void give_back(uint32_t frame, uint64_t n)
{
    store_give_back(store, frame, n);
    flush();
}

static bool has_memory(uint32_t frame)
{
    uint64_t at = frame_offset(store, frame), end;
    return next_data(store->write_fd, &at, &end) && at == frame_offset(store, frame);
}

/* ---- references: a pipe gets pages, and their bytes are read later ---- */

static int pipe_fds[2];

static bool refer_to(uint32_t frame)
{
    uint8_t *view = mmap(NULL, PAGE_SIZE, PROT_READ, MAP_SHARED, store->memfd,
                         (off_t)frame_offset(store, frame));
    struct iovec page = {view, PAGE_SIZE};
    if (view == MAP_FAILED || pipe(pipe_fds) < 0)
        return false;
    bool done = vmsplice(pipe_fds[1], &page, 1, 0) == (ssize_t)PAGE_SIZE;
    munmap(view, PAGE_SIZE);
    return done;
}

static bool is_unchanged(uint32_t frame)
{
    uint8_t got[PAGE_SIZE];
    bool same = read(pipe_fds[0], got, PAGE_SIZE) == (ssize_t)PAGE_SIZE &&
                !memcmp(got, bytes_of_frame(frame - first, true), PAGE_SIZE);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    return same;
}

static void a_freed_frame_is_not_taken_again(void)
{
    NEED_HUGE_PAGES;
    REQUIRE(open_extents() && refer_to(first + 8));
    give_back(first + 7, 3);
    CHECK(store->head->spare_frames == 3 && store_bytes(store) == bytes_of(FRAMES));
    CHECK(huge_frames(store) == FRAMES - 3);
    uint64_t n = 2;
    uint32_t taken = store_take(store, 0, &n);
    CHECK(taken != NO_FRAME && n == 2 && (taken >= first + FRAMES || taken + n <= first));
    uint8_t page[2 * PAGE_SIZE] = {1};
    CHECK(store_fill(store, taken, page, 2) == 2 && is_unchanged(first + 8));
    give_back(taken, 2);
    give_back(first, 7);
    give_back(first + 10, FRAMES - 10);
    close_extents();
}

static void the_last_frame_of_an_extent_takes_its_memory_along(void)
{
    NEED_HUGE_PAGES;
    REQUIRE(open_extents() && refer_to(first + EXTENT + 3));
    give_back(first + EXTENT, 10);
    CHECK(store->head->huge_extents == EXTENTS);
    give_back(first + EXTENT + 10, EXTENT - 10);
    CHECK(store->head->huge_extents == EXTENTS - 1 && store->head->spare_frames == 0);
    CHECK(store_bytes(store) == bytes_of(FRAMES - EXTENT) && !has_memory(first + EXTENT));
    CHECK(!is_on_large_folio(store, first + EXTENT) && is_unchanged(first + EXTENT + 3));
    give_back(first, EXTENT);
    give_back(first + 2 * EXTENT, FRAMES - 2 * EXTENT);
    close_extents();
}

/* Those that have many of them are given up for it, one after the other. */
static void an_eighth_is_spare_at_most(void)
{
    NEED_HUGE_PAGES;
    REQUIRE(open_extents());
    give_back(first, 5);
    give_back(first + EXTENT, 200);
    CHECK(store->head->spare_frames == 205 && store->head->huge_extents == EXTENTS);
    give_back(first + 2 * EXTENT, 100);
    CHECK(store->head->spare_frames == 105 && store->head->huge_extents == EXTENTS - 1);
    CHECK(!is_on_huge_page(store, first + EXTENT) && is_on_large_folio(store, first + EXTENT));
    CHECK(store_bytes(store) == bytes_of(FRAMES - 200) && !has_memory(first + EXTENT + 199));
    give_back(first + EXTENT + 200, 140); /* of what is torn */
    for (int rounds = 0; rounds < 50 && store->head->spare_frames > 5; rounds++)
        flush(); /* another processor may just be referring to one of them */
    CHECK(store->head->spare_frames == 5 && store->head->huge_extents == EXTENTS - 2);
    CHECK(store_bytes(store) == bytes_of(FRAMES - 440));
    CHECK(!has_memory(first + EXTENT) && !has_memory(first + EXTENT + 339));
    CHECK(has_memory(first + EXTENT + 340));
    for (uint32_t i = EXTENT + 340; i < 2 * EXTENT; i++)
        CHECK(!memcmp(store->memory + bytes_of(first + i), bytes_of_frame(i, true), PAGE_SIZE));
    give_back(first + 5, EXTENT - 5);
    give_back(first + EXTENT + 340, EXTENT - 340);
    give_back(first + 2 * EXTENT + 100, EXTENT - 100);
    give_back(first + 3 * EXTENT, EXTENT);
    close_extents();
}

static void what_somebody_refers_to_is_not_let_go(void)
{
    NEED_HUGE_PAGES;
    REQUIRE(open_extents() && refer_to(first + 123));
    give_back(first, 300);
    CHECK(store->head->spare_frames == 300 && store->head->huge_extents == EXTENTS);
    CHECK(store->letting_go_ms > 0); /* not tried again at once */
    CHECK(has_memory(first) && is_unchanged(first + 123));
    flush();
    CHECK(store->head->spare_frames == 0 && !has_memory(first + 299));
    REQUIRE(refer_to(first + 400));
    give_back(first + 300, 200);
    CHECK(store->head->spare_frames == 200 && store->head->torn_spare_frames == 200);
    store_flush_all(store);
    CHECK(store->head->spare_frames == 200 && is_unchanged(first + 400));
    store_flush(store); /* does not try it so soon */
    CHECK(store->head->spare_frames == 200);
    store_flush_all(store);
    CHECK(store->head->spare_frames == 0 && !has_memory(first + 400));
    give_back(first + 500, FRAMES - 500);
    close_extents();
}

/* ---- what others do while something is proven ---- */

static uint32_t freed_meanwhile; /* as many frames from the extent's end on; 0: none */

bool __real_frames_are_unreferenced(const struct store *of, const uint32_t *frames, uint64_t n);
bool __wrap_frames_are_unreferenced(const struct store *of, const uint32_t *frames, uint64_t n);

bool __wrap_frames_are_unreferenced(const struct store *of, const uint32_t *frames, uint64_t n)
{
    if (freed_meanwhile) {
        store_give_back(store, extent_of(frames[0]) + EXTENT - freed_meanwhile, freed_meanwhile);
        freed_meanwhile = 0;
        CHECK(spare_dead_frames(store) == 0);
    }
    return __real_frames_are_unreferenced(of, frames, n);
}

static void check_freed_meanwhile(bool refers)
{
    NEED_HUGE_PAGES;
    REQUIRE(open_extents() && (!refers || refer_to(first + 123)));
    freed_meanwhile = EXTENT - 300;
    give_back(first, 300);
    CHECK(!freed_meanwhile && store->head->spare_frames == 0 && !has_memory(first));
    CHECK(store_bytes(store) == bytes_of(FRAMES - EXTENT) && has_memory(first + EXTENT));
    CHECK(!refers || is_unchanged(first + 123));
    give_back(first + EXTENT, FRAMES - EXTENT);
    close_extents();
}

/* Whether that succeeds or not, nobody else sees that nothing is left of the extent. */
static void what_is_freed_during_a_proof_takes_the_extent_along(void)
{
    check_freed_meanwhile(false);
    check_freed_meanwhile(true);
}

/* A byte that is zero is looked for, since to clear it changes nothing. */
static void where_no_byte_is_zero_nothing_is_let_go(void)
{
    NEED_HUGE_PAGES;
    REQUIRE(open_filled(FRAMES, FRAMES));
    give_back(first, 400);
    CHECK(store->head->spare_frames == 400 && store->head->huge_extents == EXTENTS);
    for (uint32_t i = 400; i < FRAMES; i++)
        CHECK(!memcmp(store->memory + bytes_of(first + i), bytes_of_frame(i, false), PAGE_SIZE));
    give_back(first + 400, FRAMES - 400);
    close_extents();
}

/* The next round begins with others. */
static void what_cannot_be_let_go_is_passed_over(void)
{
    NEED_HUGE_PAGES;
    const uint32_t all = 20 * EXTENT, last = 19 * EXTENT;
    REQUIRE(open_filled(all, last));
    for (uint32_t i = 0; i < all; i += EXTENT)
        store_give_back(store, first + i, 300);
    store_give_back(store, first + last + 300, 50);
    for (int rounds = 0; rounds < 50 && store->head->huge_extents == 20; rounds++)
        flush(); /* each ends after some time, wherever it is */
    CHECK(store->head->huge_extents == 19 && store->head->spare_frames == 19 * 300);
    CHECK(!has_memory(first + last) && has_memory(first + last + 350));
    store_give_back(store, first + last + 350, 100);
    store_give_back(store, first + last + 450, 5);
    flush();
    for (int rounds = 0; rounds < 50 && store->head->spare_frames > 19 * 300; rounds++)
        flush(); /* torn ones are not passed over for those */
    CHECK(store->head->spare_frames == 19 * 300 && !has_memory(first + last + 454));
    for (uint32_t i = 0; i < last; i += EXTENT)
        store_give_back(store, first + i + 300, EXTENT - 300);
    store_give_back(store, first + last + 455, EXTENT - 455);
    flush();
    close_extents();
}

/* Nothing in it has to wait for others. */
static void an_extent_without_a_huge_page_is_plain(void)
{
    REQUIRE(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
    CHECK(!open_extents());
    REQUIRE(prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0) == 0);
    CHECK(first % EXTENT == 0 && !is_on_large_folio(store, first) && sound(engine));
    give_back(first, 3);
    CHECK(store->head->spare_frames == 0 && !has_memory(first + 2) && has_memory(first + 3));
    give_back(first + 3, FRAMES - 3);
    close_extents();
}

/* Without huge pages of its own a process cannot see which there are. */
static void who_cannot_tell_has_no_proof(void)
{
    NEED_HUGE_PAGES;
    REQUIRE(open_extents() && refer_to(first + 123));
    REQUIRE(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
    CHECK(os_file_is_huge(store->memfd, frame_offset(store, first), 0) == -EPERM);
    give_back(first, 300);
    CHECK(store->head->spare_frames == 300 && is_unchanged(first + 123));
    REQUIRE(prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0) == 0);
    CHECK(os_file_is_huge(store->memfd, frame_offset(store, first), 0) == 1);
    flush();
    CHECK(store->head->spare_frames == 0 && has_memory(first + 300));
    CHECK(os_file_is_huge(store->memfd, frame_offset(store, first), 300) == 0);
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    void *untouched = os_alloc(PAGE_SIZE); /* as what has left the page tables just now */
    CHECK(os_is_in_huge(pagemap, (uintptr_t)untouched) == -EAGAIN);
    os_unmap(untouched, PAGE_SIZE);
    close(pagemap);
    give_back(first + 300, FRAMES - 300);
    close_extents();
}

static void nothing_is_spare_where_memory_is_scarce(void)
{
    NEED_HUGE_PAGES;
    REQUIRE(open_extents());
    give_back(first, 5);
    store_flush_all(store);
    CHECK(store->head->spare_frames == 0 && sound(engine));
    CHECK(store_bytes(store) == bytes_of(FRAMES - 5));
    give_back(first + 5, FRAMES - 5);
    close_extents();
}

/* The file's folios may be of any size there, so no frame is punched by itself. */
static void where_folios_may_be_large_all_frames_wait(void)
{
    NEED_HUGE_PAGES;
    REQUIRE(open_extents());
    give_back(first, FRAMES);
    store->large_folios = true;
    uint64_t n = EXTENT;
    uint32_t frame = store_take(store, 0, &n);
    REQUIRE(n == EXTENT && frame % EXTENT == 0 && is_on_large_folio(store, frame));
    CHECK(!is_on_huge_page(store, frame) && store->head->huge_extents == 0);
    for (uint32_t i = 0; i < n; i++)
        store_fill(store, frame + i, bytes_of_frame(i, true), 1);
    first = frame;
    REQUIRE(refer_to(frame + 7));
    give_back(frame, 200);
    CHECK(store->head->spare_frames == 200 && store->head->torn_spare_frames == 200);
    CHECK(is_unchanged(frame + 7));
    flush();
    CHECK(store->head->spare_frames == 0 && !has_memory(frame) && has_memory(frame + 200));
    give_back(frame + 200, EXTENT - 200);
    CHECK(!is_on_large_folio(store, frame) && !has_memory(frame + 200));
    n = FRAMES + 5; /* ends in an extent of which no other frame was ever used */
    frame = store_take(store, 0, &n);
    CHECK(n == FRAMES + 5 && (frame + n) % EXTENT && is_on_large_folio(store, frame + FRAMES + 4));
    give_back(frame, n);
    store->large_folios = false;
    close_extents();
}

/* The records of its last frames, which were never used, have no memory then: it stays as it is. */
static void an_extent_without_memory_for_all_records_is_not_let_go(void)
{
#ifdef __SANITIZE_THREAD__
    SKIP("the sanitizer asks for memory, too");
#endif
    struct rlimit limit;
    engine = engine_of(KSMPY_FREEZE_AUTO, KSMPY_TRACKING_AUTO, 1);
    REQUIRE(engine);
    store = &engine->pages.store;
    store->large_folios = true;
    uint64_t step = bytes_of(64), n = step / sizeof(struct frame), some = 100;
    REQUIRE(n % EXTENT > some);
    first = store_take(store, 0, &n);
    REQUIRE(first == 0 && n == step / sizeof(struct frame));
    for (uint32_t i = 0; i < n; i++)
        store_fill(store, i, bytes_of_frame(i, true), 1);
    give_back(extent_of((uint32_t)n), some);
    CHECK(store->head->spare_frames == some);
    REQUIRE(take_all_memory(&limit));
    store_flush_all(store);
    REQUIRE(give_memory_back(&limit));
    CHECK(store->head->spare_frames == some && sound(engine));
    give_back(0, extent_of((uint32_t)n));
    give_back(extent_of((uint32_t)n) + (uint32_t)some, n % EXTENT - some);
    store->large_folios = false;
    close_extents();
}

/* A run that does not begin where a huge page does ends there, if it contains one. */
static void frames_lie_in_step_with_their_pages(void)
{
    NEED_HUGE_PAGES;
    REQUIRE(open_extents());
    uint64_t n = 700, few = 300;
    bool extents;
    uint32_t frame = store_take_in_step(store, 0, 512 * 9 - 100, &n, &extents);
    CHECK(n == 100 && !extents);
    uint32_t other = store_take_in_step(store, 0, 512 * 9 - 100, &few, &extents);
    CHECK(few == 300 && !extents);
    uint64_t rest = 600;
    uint32_t whole = store_take_in_step(store, 0, 512 * 9, &rest, &extents);
    CHECK(rest == HUGE_PAGES && whole % EXTENT == 0 && extents);
    give_back(frame, n);
    give_back(other, few);
    give_back(whole, rest);
    give_back(first, FRAMES);
    close_extents();
}

static void blocks_of_ids_are_found_again(void)
{
    struct ids_state state = {0};
    struct ids ids;
    REQUIRE(ids_init(&ids, 4096, &state) == 0);
    uint64_t n = 100;
    CHECK(ids_take(&ids, &n) == 0 && n == 100);
    n = 1100;
    CHECK(ids_take_blocks(&ids, 512, &n) == 512 && n == 1024);
    n = 412;
    CHECK(ids_take(&ids, &n) == 100 && n == 412); /* what was passed over */
    ids_give(&ids, 512, 512);
    n = 512;
    CHECK(ids_take_blocks(&ids, 512, &n) == 512 && n == 512);
    n = 4096;
    CHECK(ids_take_blocks(&ids, 512, &n) == 1536 && n == 2560);
    n = 512;
    CHECK(ids_take_blocks(&ids, 512, &n) == NO_INDEX);
    CHECK(state.used == 4096 && ids_used(&ids, 512, 512) == 512);
    ids_destroy(&ids);
}

/* What a process marked that died before, or whose mark was lowered again, is free. */
static void marks_above_the_high_mark_do_not_count(void)
{
    struct ids_state state = {0};
    struct ids ids;
    uint64_t n = 600;
    REQUIRE(ids_init(&ids, 4096, &state) == 0 && ids_take(&ids, &n) == 0);
    state.high = state.used = 100;
    CHECK(ids_used(&ids, 64, 64) == 36);
    CHECK(ids_reach(&ids, 1024) && ids_used(&ids, 0, 1024) == 100);
    CHECK(ids_has(&ids, 99) && !ids_has(&ids, 100) && !ids_has(&ids, 599));
    ids_destroy(&ids);
}

/* What the head or a record says too much of is found. */
static void counts_that_are_wrong_are_found(void)
{
    NEED_HUGE_PAGES;
    REQUIRE(open_extents());
    store->head->spare_frames = 1;
    CHECK(ksmpy_check(engine, NULL, 0) == -EUCLEAN);
    store->head->spare_frames = 0;
    store->head->torn_spare_frames = 1;
    CHECK(ksmpy_check(engine, NULL, 0) == -EUCLEAN);
    store->head->torn_spare_frames = 0;
    const struct {
        uint32_t frame;
        uint16_t extent;
    } wrong[] = {{first + 1, EXTENT_LARGE},
                 {first, EXTENT_LARGE | EXTENT_TORN},
                 {first, 0},
                 {first, EXTENT_LARGE | 1},
                 {first, EXTENT_TORN},
                 {first, 1}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        uint16_t before = frame_at(store, wrong[i].frame)->extent;
        frame_at(store, wrong[i].frame)->extent = wrong[i].extent;
        CHECK(ksmpy_check(engine, NULL, 0) == -EUCLEAN);
        frame_at(store, wrong[i].frame)->extent = before;
    }
    give_back(first, FRAMES);
    close_extents();
}

int main(void)
{
    RUN(a_freed_frame_is_not_taken_again);
    RUN(the_last_frame_of_an_extent_takes_its_memory_along);
    RUN(an_eighth_is_spare_at_most);
    RUN(what_somebody_refers_to_is_not_let_go);
    RUN(what_is_freed_during_a_proof_takes_the_extent_along);
    RUN(where_no_byte_is_zero_nothing_is_let_go);
    RUN(what_cannot_be_let_go_is_passed_over);
    RUN(an_extent_without_a_huge_page_is_plain);
    RUN(who_cannot_tell_has_no_proof);
    RUN(nothing_is_spare_where_memory_is_scarce);
    RUN(where_folios_may_be_large_all_frames_wait);
    RUN(an_extent_without_memory_for_all_records_is_not_let_go);
    RUN(frames_lie_in_step_with_their_pages);
    RUN(blocks_of_ids_are_found_again);
    RUN(marks_above_the_high_mark_do_not_count);
    RUN(counts_that_are_wrong_are_found);
    return finish();
}
