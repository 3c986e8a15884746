/*
 * Extents of the store's file: which frames keep their memory, and for how long.  Nothing here needs a
 * huge page.
 */
#include <errno.h>

#include "base/pages.h"
#include "check.h"
#include "engine/engine.h"
#include "ksmpy.h"
#include "os/arena.h"
#include "pages.h"
#include "store/extents.h"
#include "store/frames.h"
#include "store/layout.h"
#include "store/pool.h"
#include "store/store.h"

enum { EXTENTS = 4, FRAMES = EXTENTS * HUGE_PAGES };

static ksmpy_engine *engine;
static struct store *store;
static uint32_t first;

/* Frames of whole huge pages, on such ones or not: it does not matter to who counts. */
static bool open_extents(void)
{
    uint64_t n = FRAMES;
    bool extents;
    engine = engine_of(KSMPY_FREEZE_AUTO, KSMPY_TRACKING_AUTO, 1);
    if (!engine)
        return false;
    store = &engine->pages.store;
    first = store_take_in_step(store, 0, 0, &n, &extents);
    for (uint32_t frame = first; frame < first + n; frame += EXTENT)
        if (!is_in_huge_extent(store, frame))
            extent_becomes_huge(store, frame);
    return first % EXTENT == 0 && n == FRAMES;
}

static void close_extents(void)
{
    CHECK(sound(engine) && store_bytes(store) == 0);
    CHECK(store->head->spare_frames == 0 && store->head->huge_extents == 0);
    CHECK(ksmpy_engine_close(engine) == 0);
}

static void give_back(uint32_t frame, uint64_t n)
{
    store_give_back(store, frame, n);
    store_flush(store);
    CHECK(sound(engine));
}

static void a_freed_frame_keeps_its_memory_for_the_next(void)
{
    REQUIRE(open_extents());
    give_back(first + 7, 3);
    CHECK(store->head->spare_frames == 3 && store_bytes(store) == bytes_of(FRAMES));
    uint64_t n = 2;
    CHECK(store_take(store, 0, &n) == first + 7 && n == 2);
    CHECK(store->head->spare_frames == 1 && sound(engine));
    give_back(first, 9);
    give_back(first + 10, FRAMES - 10);
    close_extents();
}

static void the_last_frame_of_an_extent_takes_its_memory_along(void)
{
    REQUIRE(open_extents());
    give_back(first + EXTENT, 10);
    CHECK(store->head->huge_extents == EXTENTS);
    give_back(first + EXTENT + 10, EXTENT - 10);
    CHECK(store->head->huge_extents == EXTENTS - 1 && store->head->spare_frames == 0);
    CHECK(store_bytes(store) == bytes_of(FRAMES - EXTENT));
    give_back(first, EXTENT);
    give_back(first + 2 * EXTENT, FRAMES - 2 * EXTENT);
    close_extents();
}

/* Those that have the most of them are given up for it. */
static void an_eighth_is_spare_at_most(void)
{
    REQUIRE(open_extents());
    give_back(first, 5);
    give_back(first + EXTENT, 200);
    CHECK(store->head->spare_frames == 205 && store->head->huge_extents == EXTENTS);
    give_back(first + 2 * EXTENT, 100);
    CHECK(store->head->spare_frames == 105 && store->head->huge_extents == EXTENTS - 1);
    CHECK(!is_in_huge_extent(store, first + EXTENT));
    CHECK(store_bytes(store) == bytes_of(FRAMES - 200));
    give_back(first + 5, EXTENT - 5);
    give_back(first + EXTENT + 200, EXTENT - 200);
    give_back(first + 2 * EXTENT + 100, EXTENT - 100);
    give_back(first + 3 * EXTENT, EXTENT);
    close_extents();
}

static void nothing_is_spare_where_memory_is_scarce(void)
{
    REQUIRE(open_extents());
    give_back(first, 5);
    store_flush_all(store);
    CHECK(store->head->spare_frames == 0 && sound(engine));
    CHECK(store_bytes(store) == bytes_of(FRAMES - 5));
    give_back(first + 5, FRAMES - 5);
    close_extents();
}

/* A run that does not begin where a huge page does ends there, if it contains one. */
static void frames_lie_in_step_with_their_pages(void)
{
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

/* What the head or a record says too much of is found. */
static void counts_that_are_wrong_are_found(void)
{
    REQUIRE(open_extents());
    store->head->spare_frames = 1;
    CHECK(ksmpy_check(engine, NULL, 0) == -EUCLEAN);
    store->head->spare_frames = 0;
    frame_at(store, first + 1)->huge = 1;
    CHECK(ksmpy_check(engine, NULL, 0) == -EUCLEAN);
    frame_at(store, first + 1)->huge = 0;
    frame_at(store, first)->huge = 2;
    CHECK(ksmpy_check(engine, NULL, 0) == -EUCLEAN);
    frame_at(store, first)->huge = 0;
    CHECK(ksmpy_check(engine, NULL, 0) == -EUCLEAN);
    frame_at(store, first)->huge = 1;
    give_back(first, FRAMES);
    close_extents();
}

int main(void)
{
    RUN(a_freed_frame_keeps_its_memory_for_the_next);
    RUN(the_last_frame_of_an_extent_takes_its_memory_along);
    RUN(an_eighth_is_spare_at_most);
    RUN(nothing_is_spare_where_memory_is_scarce);
    RUN(frames_lie_in_step_with_their_pages);
    RUN(blocks_of_ids_are_found_again);
    RUN(counts_that_are_wrong_are_found);
    return finish();
}
