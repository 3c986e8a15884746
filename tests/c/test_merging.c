/*
 * What merging, and coming apart, must verify: each time the thing happens that the check is for,
 * in every way of freezing and of tracking.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/checksum.h"
#include "base/pages.h"
#include "check.h"
#include "engine/engine.h"
#include "freeze/freezer.h"
#include "ksmpy.h"
#include "merge/unmerge.h"
#include "os/clock.h"
#include "os/files.h"
#include "os/map.h"
#include "os/proc_maps.h"
#include "pages.h"
#include "pages/overlay.h"
#include "store/layout.h"
#include "store/pool.h"

enum { PAGES = 64, SEEN = 64 /* bytes of a page that the weak checksum looks at */ };

static int way, tracking; /* of the functions that follow */
static bool weak, no_memory;
static int none_come_back; /* -errno */
static bool shadows_get_holes; /* where pages come back from them */
static int64_t frozen_error; /* of each freeze */
static void (*when_asked_for_locks)(void); /* once */
static bool locks_memory, device_writes;
static uint64_t max_maps;
static void (*before_freeze)(void); /* once */
static unsigned freezes;

uint64_t __real_checksum_of(const void *data, size_t length);
uint64_t __real_checksum_keyed(const struct checksum_key *key, const void *data, size_t length);
uint64_t __wrap_checksum_keyed(const struct checksum_key *key, const void *data, size_t length)
{
    return __real_checksum_keyed(key, data, weak ? SEEN : length);
}
uint64_t __wrap_checksum_of(const void *data, size_t length)
{
    return __real_checksum_of(data, weak ? SEEN : length);
}

int64_t __real_freeze(struct freezer *fz, uintptr_t address, uint64_t n, const uint8_t **view);
int64_t __wrap_freeze(struct freezer *fz, uintptr_t address, uint64_t n, const uint8_t **view)
{
    void (*act)(void) = before_freeze;
    before_freeze = NULL;
    freezes++;
    if (act)
        act();
    return frozen_error ? frozen_error : __real_freeze(fz, address, n, view);
}

int __real_os_map_anonymous(uintptr_t address, uint64_t n, int vma_flags);
int __wrap_os_map_anonymous(uintptr_t address, uint64_t n, int vma_flags)
{
    return no_memory ? -ENOMEM : __real_os_map_anonymous(address, n, vma_flags);
}

int64_t __real_freeze_for_zeros(struct freezer *fz, uintptr_t address, uint64_t n,
                                const uint8_t **view);
int64_t __wrap_freeze_for_zeros(struct freezer *fz, uintptr_t address, uint64_t n,
                                const uint8_t **view)
{
    void (*act)(void) = before_freeze;
    before_freeze = NULL;
    if (act)
        act();
    return __real_freeze_for_zeros(fz, address, n, view);
}

int __real_freezer_unoverlay(struct freezer *fz, uintptr_t address, uint64_t n, uintptr_t blank,
                             int vma_flags, bool insists);
int __wrap_freezer_unoverlay(struct freezer *fz, uintptr_t address, uint64_t n, uintptr_t blank,
                             int vma_flags, bool insists)
{
    int error = none_come_back
                    ? none_come_back
                    : __real_freezer_unoverlay(fz, address, n, blank, vma_flags, insists);
    fz->moved_for_good |= !error && shadows_get_holes;
    return error;
}

int __real_os_direct_io(int tasks_fd, uintptr_t address, uint64_t n);
int __wrap_os_direct_io(int tasks_fd, uintptr_t address, uint64_t n)
{
    return device_writes ? -EBUSY : __real_os_direct_io(tasks_fd, address, n);
}

bool __wrap_os_locks_new_memory(void)
{
    void (*act)(void) = when_asked_for_locks;
    when_asked_for_locks = NULL;
    if (act)
        act();
    return locks_memory;
}

uint64_t __real_os_max_map_count(void);
uint64_t __wrap_os_max_map_count(void)
{
    return max_maps ? max_maps : __real_os_max_map_count();
}

static ksmpy_engine *engine;
static uint8_t *a, *b;
static uint32_t region_a, region_b;

static ksmpy_engine *new_engine(void)
{
    return engine_of(way, tracking, 1);
}

/* Two equal arrays. */
static bool open_pair(void)
{
    engine = new_engine();
    a = os_alloc(bytes_of(PAGES));
    b = os_alloc(bytes_of(PAGES));
    if (!engine || !a || !b)
        return false;
    fill(a, PAGES, 1);
    fill(b, PAGES, 1);
    return true;
}

static bool watch_pair(void)
{
    return ksmpy_register(engine, (uintptr_t)a, bytes_of(PAGES), 0, &region_a) == 0 &&
           ksmpy_register(engine, (uintptr_t)b, bytes_of(PAGES), 0, &region_b) == 0;
}

static void close_pair(void)
{
    max_maps = 0;
    CHECK(sound(engine));
    CHECK(ksmpy_release(engine, region_a, 0) == 0);
    CHECK(ksmpy_release(engine, region_b, 0) == 0);
    CHECK(ksmpy_engine_close(engine) == 0);
    weak = false;
    os_unmap(a, bytes_of(PAGES));
    os_unmap(b, bytes_of(PAGES));
}

/* Where the checksum does not look. */
static void make_collide(uint8_t *memory, unsigned page)
{
    memory[bytes_of(page) + SEEN] ^= 1;
}

/* ---- what is mapped onto a frame ---- */

static void pages_that_collide_stay_apart(void)
{
    weak = true;
    REQUIRE(open_pair());
    for (unsigned page = 1; page < PAGES; page++)
        make_collide(b, page);
    REQUIRE(watch_pair());
    scan(engine, KSMPY_SCAN_EAGER);
    scan(engine, KSMPY_SCAN_EAGER);
    CHECK(is_shared(&engine->pages, region_at(&engine->pages, region_b)->base));
    for (unsigned page = 1; page < PAGES; page++)
        make_collide(b, page);
    CHECK(filled(a, PAGES, 1) && filled(b, PAGES, 1));
    close_pair();
}

/* The limit is met in the middle of a run, of which every other page is equal. */
static void a_run_in_pieces_keeps_to_the_budget(void)
{
    weak = true;
    REQUIRE(open_pair());
    for (unsigned page = 1; page < PAGES; page += 2)
        make_collide(b, page);
    REQUIRE(watch_pair());
    uint64_t limit = (uint64_t)os_maps_count(&engine->pages.maps) + PAGES / 4;
    max_maps = 2 * limit; /* of which the engine takes a half */
    scan(engine, KSMPY_SCAN_EAGER);
    scan(engine, KSMPY_SCAN_EAGER);
    CHECK(is_shared(&engine->pages, region_at(&engine->pages, region_b)->base));
    /*
     * The index takes some, too, when it is used for the first time, and so does the place where overlays are
     * made ready; the thread sanitizer has some for either.
     */
    CHECK((uint64_t)os_maps_count(&engine->pages.maps) <= limit + PAGES / 4);
    close_pair();
}

static void write_into_zeros(void)
{
    a[bytes_of(3) + 5] = 1;
}

static void a_zero_page_is_zero_when_it_is_exchanged(void)
{
    REQUIRE(open_pair());
    memset(a, 0, bytes_of(PAGES));
    REQUIRE(watch_pair());
    CHECK(ksmpy_knob_set(engine, KSMPY_KNOB_USE_ZERO_PAGES, 1) == 0);
    before_freeze = write_into_zeros;
    scan(engine, KSMPY_SCAN_EAGER);
    CHECK(!before_freeze && engine->pages.pages_in[PAGE_ZERO]);
    CHECK(a[bytes_of(3) + 5] == 1);
    close_pair();
}

/* ---- when nothing may be merged ---- */

/* An overlay would be filled with copies of its frames at once. */
static void nothing_is_merged_into_locked_memory(void)
{
    REQUIRE(open_pair() && watch_pair());
    locks_memory = true;
    CHECK(scan(engine, KSMPY_SCAN_EAGER).merged == 0);
    locks_memory = false;
    CHECK(scan(engine, KSMPY_SCAN_EAGER).merged == 2 * PAGES);
    close_pair();
}

/* UFFDIO_MOVE sees by itself what devices write into. */
static void what_a_device_writes_into_stays_where_it_is(void)
{
    REQUIRE(open_pair() && watch_pair());
    device_writes = true;
    CHECK(scan(engine, KSMPY_SCAN_EAGER).merged == 0 || way == KSMPY_FREEZE_UFFD_MOVE);
    device_writes = false;
    scan(engine, KSMPY_SCAN_EAGER);
    CHECK(engine->pages.pages_in[PAGE_SHARED] == 2 * PAGES);
    a[5] ^= 1; /* a copy, which is where a device would write */
    device_writes = true;
    CHECK(unmerge_pages(&engine->merger, region_a, 0, 1, PAGE_SEEN) == -EBUSY);
    device_writes = false;
    a[5] ^= 1;
    CHECK(filled(a, PAGES, 1) && filled(b, PAGES, 1));
    close_pair();
}

static int kept, other;

static void the_program_takes_the_descriptor(void)
{
    CHECK(dup2(other, engine->pages.store.memfd) >= 0);
}

/* Overlays would be mapped from whatever has the number of the store by now. */
static void nothing_is_merged_onto_another_file(void)
{
    REQUIRE(open_pair() && watch_pair());
    kept = dup(engine->pages.store.memfd);
    other = os_memfd("other", bytes_of(2 * PAGES));
    REQUIRE(kept >= 0 && other >= 0);
    when_asked_for_locks = the_program_takes_the_descriptor;
    struct ksmpy_scan_result result;
    ksmpy_scan(engine, 2 * PAGES, KSMPY_SCAN_EAGER | KSMPY_SCAN_RESTART, &result);
    CHECK(!when_asked_for_locks && result.merged == 0);
    CHECK(result.busy == PAGES); /* nor is it tried: no frame is made */
    CHECK(filled(a, PAGES, 1) && filled(b, PAGES, 1));
    REQUIRE(dup2(kept, engine->pages.store.memfd) >= 0);
    close(kept);
    close(other);
    close_pair();
}

/* ---- what leaves its frame ---- */

static bool shows_no_frame(const uint8_t *memory)
{
    struct os_vma vma;
    uintptr_t at = (uintptr_t)memory, end = at + bytes_of(PAGES);
    os_maps_refresh(&engine->pages.maps);
    while (at < end && os_maps_find(&engine->pages.maps, at, &vma) > 0 && vma.start < end) {
        if (shows_store(&engine->pages, &vma))
            return false;
        at = vma.end;
    }
    return true;
}

/* ESTALE: they were something else than at the look before, as often as they are looked at. */
static void frames_stay_under_what_could_not_be_unmerged(void)
{
    static const int errors[] = {-ENOMEM, -ESTALE};
    REQUIRE(open_pair() && watch_pair());
    scan(engine, KSMPY_SCAN_EAGER);
    uint64_t shared = engine->pages.pages_in[PAGE_SHARED];
    for (int i = 0; i < 2; i++) {
        none_come_back = errors[i];
        CHECK(ksmpy_unmerge(engine) == errors[i]);
    }
    none_come_back = 0;
    CHECK(shared && engine->pages.pages_in[PAGE_SHARED] == shared);
    CHECK(filled(a, PAGES, 1) && filled(b, PAGES, 1));
    CHECK(ksmpy_unmerge(engine) == 0 && shows_no_frame(a) && shows_no_frame(b));
    close_pair();
}

static void a_shadow_with_a_hole_is_used_no_more(void)
{
    REQUIRE(open_pair() && watch_pair());
    scan(engine, KSMPY_SCAN_EAGER);
    struct region *region = region_at(&engine->pages, region_a);
    bool lends = region->shadow;
    uintptr_t shadow = region->shadow;
    shadows_get_holes = true;
    CHECK(ksmpy_unmerge_region(engine, region_a) == 0);
    shadows_get_holes = false;
    CHECK(!region->shadow && filled(a, PAGES, 1));
    if (lends)
        os_unmap((void *)shadow, bytes_of(PAGES + 1));
    close_pair();
}

/* As after a migration, or when the kernel took them: no page table knows any of these pages. */
static bool take_out_of_page_tables(uint8_t *overlays)
{
    for (unsigned i = 0; i < PAGES; i++) {
        void *away = mremap(page_at((uintptr_t)overlays, i), PAGE_SIZE, PAGE_SIZE,
                            MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
        if (away == MAP_FAILED)
            return false;
        munmap(away, PAGE_SIZE);
    }
    return true;
}

static void absent_pages_leave_their_frames(void)
{
    REQUIRE(open_pair() && watch_pair());
    scan(engine, KSMPY_SCAN_EAGER);
    CHECK(is_shared(&engine->pages, region_at(&engine->pages, region_a)->base));
    CHECK(take_out_of_page_tables(a) && take_out_of_page_tables(b));
    CHECK(ksmpy_unmerge(engine) == 0);
    CHECK(shows_no_frame(a) && shows_no_frame(b));
    CHECK(filled(a, PAGES, 1) && filled(b, PAGES, 1));
    close_pair();
}

/* Its overlays stay where they are, so their frames are nobody else's for ever. */
static void frames_stay_under_what_could_not_be_discarded(void)
{
    REQUIRE(open_pair() && watch_pair());
    scan(engine, KSMPY_SCAN_EAGER);
    no_memory = true;
    CHECK(ksmpy_release(engine, region_a, 1) == 0);
    no_memory = false;
    REQUIRE(!shows_no_frame(a));
    uint8_t *overlays = a;
    a = os_alloc(bytes_of(PAGES));
    REQUIRE(a != NULL);
    fill(a, PAGES, 1000);
    fill(b, PAGES, 1000);
    CHECK(ksmpy_register(engine, (uintptr_t)a, bytes_of(PAGES), 0, &region_a) == 0);
    scan(engine, KSMPY_SCAN_EAGER);
    scan(engine, KSMPY_SCAN_EAGER);
    CHECK(is_shared(&engine->pages, region_at(&engine->pages, region_a)->base));
    CHECK(filled(overlays, PAGES, 1));
    os_unmap(overlays, bytes_of(PAGES));
    close_pair();
}

/* Frames that lost sight of an overlay are kept for it, and not for those that are in sight. */
static void what_is_in_sight_keeps_no_pins(void)
{
    REQUIRE(open_pair() && watch_pair());
    scan(engine, KSMPY_SCAN_EAGER);
    no_memory = true;
    CHECK(ksmpy_release(engine, region_b, 1) == 0);
    no_memory = false;
    for (int i = 0; i < 5; i++)
        scan(engine, KSMPY_SCAN_EAGER);
    CHECK(engine->pages.pins.count == PAGES && !shows_no_frame(b));
    os_unmap(b, bytes_of(PAGES));
    for (int i = 0; i < 5; i++)
        scan(engine, KSMPY_SCAN_EAGER);
    CHECK(engine->pages.pins.count == 0 && !engine->pages.store.pinned);
    CHECK(!shows_no_frame(a) && filled(a, PAGES, 1));
    b = os_alloc(bytes_of(PAGES));
    REQUIRE(b && ksmpy_register(engine, (uintptr_t)b, bytes_of(PAGES), 0, &region_b) == 0);
    close_pair();
}

/* The overlays of an array go out of sight, and are unmapped. */
static void lose_sight(uint32_t region, uint8_t *array)
{
    no_memory = true;
    CHECK(ksmpy_release(engine, region, 1) == 0);
    no_memory = false;
    CHECK(!shows_no_frame(array));
    os_unmap(array, bytes_of(PAGES));
}

/* One look can miss a mapping, whoever else's mapping of that frame was looked for before. */
static void each_that_goes_out_of_sight_is_looked_for_as_often(bool shared)
{
    struct ksmpy_options options = {.freeze = way, .tracking = tracking, .nodes = 1};
    REQUIRE(open_pair());
    if (shared) {
        REQUIRE(ksmpy_engine_close(engine) == 0);
        options.store_fd = os_memfd("ksmpy-store", 0);
        REQUIRE(ksmpy_engine_new(&options, &engine) == 0);
    }
    REQUIRE(watch_pair());
    for (int i = 0; i < 4; i++)
        scan(engine, KSMPY_SCAN_EAGER);
    const struct store *store = &engine->pages.store;
    REQUIRE(store_bytes(store) == bytes_of(PAGES));
    lose_sight(region_a, a);
    scan(engine, KSMPY_SCAN_EAGER);
    scan(engine, KSMPY_SCAN_EAGER);
    lose_sight(region_b, b);
    for (int looks = 1; looks <= 2; looks++) {
        scan(engine, KSMPY_SCAN_EAGER);
        CHECK(store_bytes(store) == bytes_of(PAGES));
    }
    scan(engine, KSMPY_SCAN_EAGER);
    CHECK(store_bytes(store) == 0 && engine->pages.pins.count == 0);
    CHECK(sound(engine) && ksmpy_engine_close(engine) == 0);
    if (shared)
        close(options.store_fd);
}

static void each_is_looked_for_in_a_store_of_ones_own(void)
{
    each_that_goes_out_of_sight_is_looked_for_as_often(false);
}

static void each_is_looked_for_in_a_shared_store(void)
{
    each_that_goes_out_of_sight_is_looked_for_as_often(true);
}

/* The frames that were made of them are in the index by then. */
static void pages_that_cannot_be_frozen_leave_their_frames(void)
{
    static const int64_t errors[] = {-EBUSY, -EINVAL};
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
        REQUIRE(open_pair() && watch_pair());
        frozen_error = errors[i];
        struct ksmpy_scan_result result = scan(engine, KSMPY_SCAN_EAGER);
        frozen_error = 0;
        CHECK(result.merged == 0);
        const struct store_head *head = engine->pages.store.head;
        CHECK(head->live_frames == 0 && head->shared_pages == 0 &&
              store_bytes(&engine->pages.store) == 0);
        CHECK(scan(engine, KSMPY_SCAN_EAGER).merged == 2 * PAGES);
        close_pair();
    }
}

/* Is a count the last thing that happened?  Sanitizers map memory of their own at any time. */
static bool is_just_counted(const struct budget *budget)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return budget->counted == budget->mappings;
#else
    return budget->counted == (uint64_t)os_mappings();
#endif
}

/* A count reads all of /proc/self/maps: more than the rest of such a pass. */
static void mappings_are_counted_where_that_can_tell_something(void)
{
    REQUIRE(open_pair() && watch_pair());
    struct budget *budget = &engine->merger.budget;
    for (int i = 0; i < 5; i++)
        scan(engine, KSMPY_SCAN_EAGER);
    budget->outdated_ns = UINT64_MAX; /* however long this takes */
    uint64_t counts = budget->counts;
    CHECK(counts > 0);
    for (int i = 0; i < 5; i++)
        scan(engine, KSMPY_SCAN_EAGER);
    CHECK(budget->counts == counts);
    b[0] ^= 1; /* an overlay is taken apart: next to nothing of the room there is */
    for (int i = 0; i < 5; i++)
        scan(engine, KSMPY_SCAN_EAGER);
    CHECK(budget->counts == counts && budget->mappings != budget->counted);
    max_maps = 2 * ((uint64_t)os_mappings() + 32); /* of which the engine takes a half */
    scan(engine, KSMPY_SCAN_EAGER);
    CHECK(budget->counts == counts + 1 && is_just_counted(budget));
    budget->outdated_ns = UINT64_MAX;
    b[bytes_of(2)] ^= 1; /* there is little room now */
    for (int i = 0; i < 5; i++)
        scan(engine, KSMPY_SCAN_EAGER);
    CHECK(budget->counts > counts + 1 && is_just_counted(budget));
    max_maps = 0;
    counts = budget->counts;
    budget->outdated_ns = 0; /* the program had time to map something */
    scan(engine, KSMPY_SCAN_EAGER);
    CHECK(budget->counts == counts + 1);
    CHECK(budget->outdated_ns > os_now_ns());
    close_pair();
}

/* The same bytes in other memory, which belongs to no userfaultfd; samples of it do not change. */
static void what_the_owner_has_mapped_instead_is_not_frozen(void)
{
    uint8_t *both[2];
    struct ksmpy_stats out;
    if (tracking != KSMPY_TRACKING_WP_ASYNC)
        return; /* nothing tells of it */
    REQUIRE(open_pair() && watch_pair());
    both[0] = a, both[1] = b;
    for (int i = 0; i < 2; i++) {
        REQUIRE(mmap(both[i], bytes_of(PAGES), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == both[i]);
        fill(both[i], PAGES, 1);
    }
    freezes = 0;
    for (int i = 0; i < 8; i++)
        scan(engine, 0);
    CHECK(ksmpy_counters(engine, &out) == 0 && out.pages_differed > 0 && out.pages_sharing == 0);
    CHECK(freezes == 0);
    close_pair();
}

/* Over what had merged: touched or not, it saves nothing, and its frames are let go. */
static void what_the_owner_has_mapped_over_what_had_merged_leaves_its_frames(void)
{
    struct ksmpy_stats out;
    REQUIRE(open_pair() && watch_pair());
    for (int i = 0; i < 2; i++)
        scan(engine, KSMPY_SCAN_EAGER);
    CHECK(ksmpy_counters(engine, &out) == 0 && out.pages_sharing == PAGES);
    REQUIRE(mmap(b, bytes_of(PAGES), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == b);
    fill(b, PAGES / 2, 2 * PAGES);
    for (int i = 0; i < 2; i++)
        scan(engine, 0);
    CHECK(ksmpy_counters(engine, &out) == 0 && out.pages_sharing == 0);
    REQUIRE(mmap(a, bytes_of(PAGES), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == a);
    for (int i = 0; i < 8; i++)
        scan(engine, 0);
    CHECK(ksmpy_counters(engine, &out) == 0 && out.pages_shared == 0);
    close_pair();
}

static void run_all(void)
{
    RUN(mappings_are_counted_where_that_can_tell_something);
    RUN(pages_that_cannot_be_frozen_leave_their_frames);
    RUN(what_the_owner_has_mapped_instead_is_not_frozen);
    RUN(what_the_owner_has_mapped_over_what_had_merged_leaves_its_frames);
    RUN(pages_that_collide_stay_apart);
    RUN(a_run_in_pieces_keeps_to_the_budget);
    RUN(a_zero_page_is_zero_when_it_is_exchanged);
    RUN(nothing_is_merged_into_locked_memory);
    RUN(what_a_device_writes_into_stays_where_it_is);
    RUN(nothing_is_merged_onto_another_file);
    RUN(frames_stay_under_what_could_not_be_unmerged);
    RUN(a_shadow_with_a_hole_is_used_no_more);
    RUN(absent_pages_leave_their_frames);
    RUN(frames_stay_under_what_could_not_be_discarded);
    RUN(what_is_in_sight_keeps_no_pins);
    RUN(each_is_looked_for_in_a_store_of_ones_own);
    RUN(each_is_looked_for_in_a_shared_store);
}

int main(void)
{
    for (way = KSMPY_FREEZE_UFFD_MOVE; way <= KSMPY_FREEZE_SIGNAL; way++)
        for (tracking = KSMPY_TRACKING_WP_ASYNC; tracking <= KSMPY_TRACKING_CHECKSUM; tracking++) {
            if (works_here(way, tracking))
                run_all();
        }
    return finish();
}
