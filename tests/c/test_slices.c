/*
 * What takes long is cut into slices, between which others have the engine's lock: here they do
 * their worst there, on every run.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/pages.h"
#include "check.h"
#include "engine/engine.h"
#include "engine/locks.h"
#include "freeze/freezer.h"
#include "ksmpy.h"
#include "os/map.h"
#include "os/proc_maps.h"
#include "pages.h"
#include "pages/overlay.h"
#include "store/pool.h"

enum { PAGES = 8192 }; /* no way of freezing gives so many back in one slice */

static ksmpy_engine *engine;
static uint8_t *a, *b;
static uint32_t region_a, region_b;
static int way, tracking;

/* ---- between two slices ---- */

static void (*between)(void);
static unsigned slices, act_after; /* so many of them */
static bool (*when)(void); /* or NULL: at any time */
static int fail_after; /* pieces that come back; 0: all do */

static bool attach_fails;
static void (*before_return)(void); /* once: overlays were looked at, and come back */
static uint64_t stopped_clock; /* what the clock says all the time; 0: it goes */

void __real_engine_let_others_in(ksmpy_engine *sliced);
uint64_t __real_os_now_ns(void);
int __real_freezer_attach(struct freezer *fz, uintptr_t address, uint64_t n);
int __real_freezer_unoverlay(struct freezer *fz, uintptr_t address, uint64_t n, uintptr_t blank,
                             int vma_flags, bool insists);

uint64_t __wrap_os_now_ns(void)
{
    return stopped_clock ? stopped_clock : __real_os_now_ns();
}

void __wrap_engine_let_others_in(ksmpy_engine *sliced)
{
    void (*action)(void) = between;
    if (!action || ++slices < act_after || (when && !when())) {
        __real_engine_let_others_in(sliced);
        return;
    }
    between = NULL;
    when = NULL;
    engine_unlock(sliced);
    action();
    engine_lock(sliced);
}

int __wrap_freezer_unoverlay(struct freezer *fz, uintptr_t address, uint64_t n, uintptr_t blank,
                             int vma_flags, bool insists)
{
    void (*action)(void) = before_return;
    before_return = NULL;
    if (action)
        action();
    if (fail_after && --fail_after == 0)
        return -ENOMEM;
    return __real_freezer_unoverlay(fz, address, n, blank, vma_flags, insists);
}

/* However little time has passed. */
void __wrap_engine_end_slice(ksmpy_engine *sliced, uint64_t *deadline)
{
    (void)deadline;
    __wrap_engine_let_others_in(sliced);
}

void __wrap_engine_end_count(ksmpy_engine *sliced, struct counting *counting)
{
    (void)counting;
    __wrap_engine_let_others_in(sliced);
}

int __wrap_freezer_attach(struct freezer *fz, uintptr_t address, uint64_t n)
{
    return attach_fails ? -ENOMEM : __real_freezer_attach(fz, address, n);
}

static void act(unsigned after, void (*action)(void))
{
    slices = 0;
    act_after = after;
    between = action;
}

/* ---- the scene ---- */

static ksmpy_engine *new_engine(void)
{
    return engine_of(way, tracking, 1);
}

static bool watch(uint8_t *memory, uint32_t *region)
{
    return ksmpy_register(engine, (uintptr_t)memory, bytes_of(PAGES), KSMPY_VMA_NOHUGEPAGE,
                          region) == 0;
}

/* Whatever this machine gives huge pages to: pieces are of small pages. */
static uint8_t *new_array(void)
{
    uint8_t *array = os_alloc(bytes_of(PAGES));
    if (array)
        os_set_vma_flags((uintptr_t)array, PAGES, KSMPY_VMA_NOHUGEPAGE);
    return array;
}

/* Two equal arrays, all of whose pages are merged. */
static bool open_merged(void)
{
    engine = new_engine();
    a = new_array();
    b = new_array();
    if (!engine || !a || !b)
        return false;
    fill(a, PAGES, 1);
    fill(b, PAGES, 1);
    if (!watch(a, &region_a) || !watch(b, &region_b))
        return false;
    scan(engine, KSMPY_SCAN_EAGER);
    return engine->pages.pages_in[PAGE_SHARED] == 2 * PAGES;
}

static void close_all(void)
{
    CHECK(between == NULL); /* there were slices */
    CHECK(sound(engine));
    while (engine->pages.first_region != NO_REGION)
        REQUIRE(ksmpy_release(engine, engine->pages.first_region, 0) == 0);
    CHECK(sound(engine) && store_bytes(&engine->pages.store) == 0);
    CHECK(ksmpy_engine_close(engine) == 0);
    os_unmap(a, bytes_of(PAGES));
    os_unmap(b, bytes_of(PAGES));
}

static uint64_t shared_of(uint32_t region)
{
    return region_at(&engine->pages, region)->pages_in[PAGE_SHARED];
}

static uint64_t overlays_of(const uint8_t *memory)
{
    struct os_vma vma;
    uintptr_t at = (uintptr_t)memory, end = at + bytes_of(PAGES);
    uint64_t found = 0;
    os_maps_refresh(&engine->pages.maps);
    for (; at < end && os_maps_find(&engine->pages.maps, at, &vma) > 0 && vma.start < end;
         at = vma.end)
        found += shows_store(&engine->pages, &vma);
    return found;
}

/* ---- fork ---- */

static int child_waits[2];
static pid_t child;

/* In the child both arrays are what they were; and stay so when it gives them back itself. */
static int look_at_all(void)
{
    char go;
    if (!filled(a, PAGES, 1) || !filled(b, PAGES, 1))
        return 1;
    if (region_at(&engine->pages, region_a)->leaving)
        return 7; /* a pass of the child's would leave it alone for ever */
    if (engine->pages.arriving != NO_REGION || engine->pages.registered != 2 * PAGES)
        return 8;
    a[0] ^= 1; /* nothing of the parent's */
    a[0] ^= 1;
    if (read(child_waits[0], &go, 1) != 0) /* until the parent has gone on to the end */
        return 2;
    if (!filled(a, PAGES, 1) || !filled(b, PAGES, 1))
        return 3;
    if (ksmpy_release(engine, region_a, 0) || ksmpy_release(engine, region_b, 0))
        return 4;
    if (overlays_of(a) || overlays_of(b))
        return 5;
    return filled(a, PAGES, 1) && filled(b, PAGES, 1) ? 0 : 6;
}

static void fork_a_child(void)
{
    fflush(stdout);
    if (pipe(child_waits) < 0 || (child = fork()) < 0)
        return;
    if (child == 0) {
        close(child_waits[1]);
        _exit(look_at_all());
    }
    close(child_waits[0]);
}

static int end_of_child(void)
{
    int status = -1;
    close(child_waits[1]);
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void a_fork_between_two_slices_of_an_unmerge(void)
{
    REQUIRE(open_merged());
    act(3, fork_a_child);
    CHECK(ksmpy_unmerge_region(engine, region_a) == 0);
    CHECK(shared_of(region_a) == 0 && overlays_of(a) == 0);
    CHECK(shared_of(region_b) == PAGES);
    CHECK(filled(a, PAGES, 1) && filled(b, PAGES, 1));
    CHECK(end_of_child() == 0);
    scan(engine, KSMPY_SCAN_EAGER); /* the child's frames are nobody's any more */
    close_all();
}

static void a_fork_between_two_slices_of_a_release(void)
{
    REQUIRE(open_merged());
    act(3, fork_a_child);
    CHECK(ksmpy_release(engine, region_a, 0) == 0);
    CHECK(overlays_of(a) == 0 && filled(a, PAGES, 1) && filled(b, PAGES, 1));
    memset(a, 7, bytes_of(PAGES)); /* the owner's own again */
    CHECK(end_of_child() == 0);
    CHECK(filled(b, PAGES, 1));
    scan(engine, KSMPY_SCAN_EAGER);
    close_all();
}

static void a_fork_between_two_slices_of_a_registration(void)
{
    uint32_t region_c;
    REQUIRE(open_merged());
    uint8_t *c = os_alloc(bytes_of(PAGES));
    REQUIRE(c != NULL);
    act(3, fork_a_child);
    CHECK(watch(c, &region_c));
    CHECK(end_of_child() == 0);
    fill(c, PAGES, 1);
    scan(engine, KSMPY_SCAN_EAGER);
    CHECK(shared_of(region_c) == PAGES && filled(c, PAGES, 1));
    close_all();
    os_unmap(c, bytes_of(PAGES));
}

/* ---- a pass ---- */

static void pass(void)
{
    scan(engine, KSMPY_SCAN_EAGER);
}

static void a_pass_merges_nothing_of_what_comes_back(void)
{
    REQUIRE(open_merged());
    act(3, pass);
    CHECK(ksmpy_unmerge_region(engine, region_a) == 0);
    CHECK(shared_of(region_a) == 0 && overlays_of(a) == 0);
    scan(engine, KSMPY_SCAN_EAGER);
    CHECK(shared_of(region_a) == PAGES); /* afterwards it does */
    close_all();
}

static uint8_t *c;
static uint32_t region_c;

static void bring_what_waits_in_a(void)
{
    memcpy(c, a, bytes_of(PAGES));
    CHECK(watch(c, &region_c));
    scan(engine, KSMPY_SCAN_EAGER);
}

/* Of each chunk the first quarter is a's alone, and waits for an equal. */
#define WAITS(page) ((page) % CHUNK < CHUNK / 4)

static bool in_the_middle_of_a_chunk(void)
{
    return shared_of(region_a) % (CHUNK - CHUNK / 4);
}

static void what_has_come_back_is_no_other_pages_equal(void)
{
    REQUIRE(open_merged());
    c = os_alloc(bytes_of(PAGES));
    REQUIRE(c != NULL);
    for (unsigned page = 0; page < PAGES; page++)
        if (WAITS(page))
            memset(a + bytes_of(page), (int)(page % 251) + 1, PAGE_SIZE / 2);
    scan(engine, 0);
    scan(engine, KSMPY_SCAN_EAGER);
    CHECK(shared_of(region_a) > PAGES / 2 && shared_of(region_a) < PAGES);
    when = in_the_middle_of_a_chunk;
    act(1, bring_what_waits_in_a);
    CHECK(ksmpy_unmerge_region(engine, region_a) == 0);
    CHECK(shared_of(region_a) == 0 && overlays_of(a) == 0);
    CHECK(memcmp(a, c, bytes_of(PAGES)) == 0);
    close_all();
    os_unmap(c, bytes_of(PAGES));
}

/* ---- a registration ---- */

static uint8_t *d;

static void what_arrives_is_nobodys(void)
{
    struct ksmpy_stats stats;
    CHECK(ksmpy_find_region(engine, (uintptr_t)d, bytes_of(2 * PAGES)) == -ENOENT);
    CHECK(ksmpy_stats(engine, &stats) == 0 && stats.registered_pages == 2 * PAGES);
    CHECK(sound(engine));
}

static bool arrive(uint32_t *region)
{
    return ksmpy_register(engine, (uintptr_t)d, bytes_of(2 * PAGES), 0, region) == 0;
}

static void a_registration_that_fails_leaves_nothing(void)
{
    uint32_t region;
    REQUIRE(open_merged());
    d = os_alloc(bytes_of(2 * PAGES));
    REQUIRE(d != NULL);
    uint64_t used = engine->pages.chunk_state.used;
    attach_fails = true;
    act(3, what_arrives_is_nobodys);
    CHECK(!arrive(&region));
    attach_fails = false;
    CHECK(!between && sound(engine) && engine->pages.arriving == NO_REGION);
    CHECK(engine->pages.chunk_state.used == used && engine->pages.registered == 2 * PAGES);
    CHECK(arrive(&region) && sound(engine));
    close_all();
    os_unmap(d, bytes_of(2 * PAGES));
}

static void write_equals_and_pass(void)
{
    CHECK(engine->pages.candidates.old_heads != NULL);
    CHECK(sound(engine));
    memcpy(b, a, bytes_of(PAGES));
    scan(engine, KSMPY_SCAN_EAGER);
    CHECK(engine->pages.pages_in[PAGE_SHARED] == 2 * PAGES);
}

/* Pages that wait are found while their table grows, whichever of the two they are in. */
static void a_pass_finds_what_waits_while_there_is_more_room(void)
{
    uint32_t region;
    REQUIRE(open_merged());
    d = os_alloc(bytes_of(2 * PAGES));
    REQUIRE(d != NULL);
    fill(a, PAGES, 3);
    fill(b, PAGES, 4000000);
    scan(engine, KSMPY_SCAN_EAGER);
    scan(engine, KSMPY_SCAN_EAGER);
    CHECK(engine->pages.pages_in[PAGE_WAITING] == 2 * PAGES);
    act(20, write_equals_and_pass);
    CHECK(arrive(&region) && sound(engine) && !engine->pages.candidates.old_heads);
    CHECK(filled(a, PAGES, 3) && filled(b, PAGES, 3));
    close_all();
    os_unmap(d, bytes_of(2 * PAGES));
}

/* ---- the owner exchanges ---- */

enum { HERE = 200, THERE = 5000 }; /* in one piece with the first page's chunk, and far away */

static void exchange(void)
{
    void *here = page_at((uintptr_t)a, HERE), *there = page_at((uintptr_t)a, THERE);
    void *aside = os_reserve(PAGE_SIZE);
    const int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    CHECK(mremap(here, PAGE_SIZE, PAGE_SIZE, flags, aside) == aside);
    CHECK(mremap(there, PAGE_SIZE, PAGE_SIZE, flags, here) == here);
    CHECK(mremap(aside, PAGE_SIZE, PAGE_SIZE, flags, there) == there);
}

static bool has_bytes_of(const uint8_t *page, uint32_t number)
{
    return filled(page, 1, 1 + number);
}

/* What is mapped elsewhere by now is not freed with the page that it belonged to. */
static void overlays_are_exchanged_while_their_region_is_unmerged(void)
{
    REQUIRE(open_merged());
    CHECK(ksmpy_release(engine, region_b, 0) == 0);
    before_return = exchange;
    stopped_clock = __real_os_now_ns();
    CHECK(ksmpy_unmerge_region(engine, region_a) == 0 && !before_return);
    stopped_clock = 0;
    CHECK(has_bytes_of(page_at((uintptr_t)a, HERE), THERE));
    CHECK(has_bytes_of(page_at((uintptr_t)a, THERE), HERE));
    CHECK(shared_of(region_a) == 0 && overlays_of(a) == 0);
    for (int i = 0; i < 4; i++)
        scan(engine, KSMPY_SCAN_EAGER); /* until nobody maps what was kept */
    close_all();
}

/* ---- the owner dies ---- */

static void the_owner_dies(void)
{
    CHECK(ksmpy_release(engine, region_a, 1) == 0);
    memset(a, 0, bytes_of(PAGES));
}

static void an_owner_dies_between_two_slices_of_an_unmerge(void)
{
    REQUIRE(open_merged());
    act(3, the_owner_dies);
    CHECK(ksmpy_unmerge_region(engine, region_a) == -ENOENT);
    CHECK(filled(b, PAGES, 1));
    close_all();
}

static void another_has_its_place(void)
{
    uint32_t released = region_a;
    CHECK(ksmpy_release(engine, region_a, 0) == 0);
    CHECK(watch(a, &region_a) && region_a == released);
    scan(engine, KSMPY_SCAN_EAGER);
    CHECK(shared_of(region_a) == PAGES);
}

static void a_region_with_an_old_number_is_left_alone(void)
{
    REQUIRE(open_merged());
    act(3, another_has_its_place);
    CHECK(ksmpy_unmerge_region(engine, region_a) == -ENOENT);
    CHECK(shared_of(region_a) == PAGES && filled(a, PAGES, 1));
    act(3, another_has_its_place);
    CHECK(ksmpy_release(engine, region_a, 0) == -ENOENT);
    CHECK(shared_of(region_a) == PAGES && filled(a, PAGES, 1));
    scan(engine, KSMPY_SCAN_EAGER);
    CHECK(region_at(&engine->pages, region_a)->leaving == 0);
    close_all();
}

static bool a_is_given_back(void)
{
    return shared_of(region_a) == 0;
}

static void what_is_given_back_may_be_anothers_at_once(void)
{
    REQUIRE(open_merged());
    when = a_is_given_back;
    act(1, another_has_its_place);
    CHECK(ksmpy_release(engine, region_a, 0) == -ENOENT);
    CHECK(shared_of(region_a) == PAGES && filled(a, PAGES, 1));
    a[0] ^= 1; /* it is still watched */
    CHECK(ksmpy_refresh(engine) == 0);
    CHECK(shared_of(region_a) == PAGES - 1);
    close_all();
}

/* ---- counters ---- */

static void look_at_counters(void)
{
    struct ksmpy_stats stats;
    CHECK(ksmpy_stats(engine, &stats) == 0 && sound(engine));
    CHECK(stats.merging_pages > PAGES && stats.merging_pages < 2 * PAGES);
}

static void counters_are_right_between_two_slices(void)
{
    REQUIRE(open_merged());
    act(3, look_at_counters);
    CHECK(ksmpy_release(engine, region_a, 0) == 0);
    close_all();
}

static void release_both(void)
{
    CHECK(ksmpy_release(engine, region_a, 1) == 0);
    CHECK(ksmpy_release(engine, region_b, 1) == 0);
}

static void regions_go_while_written_pages_come_apart(void)
{
    REQUIRE(open_merged());
    for (unsigned page = 0; page < PAGES; page += 2)
        a[bytes_of(page)] ^= 1;
    act(3, release_both);
    CHECK(ksmpy_refresh(engine) == 0);
    close_all();
}

/* ---- interrupted ---- */

static void what_failed_in_the_middle_is_gone_on_with(void)
{
    REQUIRE(open_merged());
    fail_after = PAGES / FREEZE_MAX / 2;
    CHECK(ksmpy_release(engine, region_a, 0) == -ENOMEM);
    CHECK(fail_after == 0 && shared_of(region_a) == FREEZE_MAX && sound(engine));
    CHECK(region_at(&engine->pages, region_a)->leaving == 0 && filled(a, PAGES, 1));
    scan(engine, KSMPY_SCAN_EAGER);
    CHECK(shared_of(region_a) == PAGES); /* it is a region as any other */
    CHECK(ksmpy_unmerge(engine) == 0);
    CHECK(overlays_of(a) == 0 && filled(a, PAGES, 1) && filled(b, PAGES, 1));
    close_all();
}

static void run_all(void)
{
    RUN(a_fork_between_two_slices_of_an_unmerge);
    RUN(a_fork_between_two_slices_of_a_release);
    RUN(a_fork_between_two_slices_of_a_registration);
    RUN(a_registration_that_fails_leaves_nothing);
    RUN(a_pass_finds_what_waits_while_there_is_more_room);
    RUN(a_pass_merges_nothing_of_what_comes_back);
    RUN(what_has_come_back_is_no_other_pages_equal);
    RUN(overlays_are_exchanged_while_their_region_is_unmerged);
    RUN(an_owner_dies_between_two_slices_of_an_unmerge);
    RUN(a_region_with_an_old_number_is_left_alone);
    RUN(what_is_given_back_may_be_anothers_at_once);
    RUN(counters_are_right_between_two_slices);
    RUN(regions_go_while_written_pages_come_apart);
    RUN(what_failed_in_the_middle_is_gone_on_with);
}

int main(void)
{
    const int ways[][2] = {{KSMPY_FREEZE_UFFD_WP, KSMPY_TRACKING_WP_ASYNC},
                           {KSMPY_FREEZE_UFFD_MOVE, KSMPY_TRACKING_WP_ASYNC},
                           {KSMPY_FREEZE_SIGNAL, KSMPY_TRACKING_CHECKSUM}};
    return finish_in(ways, sizeof ways / sizeof ways[0], &way, &tracking, run_all);
}
