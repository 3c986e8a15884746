/* What the owner maps in place of its pages between two steps of an exchange, on every run. */
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/pages.h"
#include "check.h"
#include "freeze/freezer.h"
#include "freeze/home.h"
#include "freeze/moving.h"
#include "freeze/registration.h"
#include "freeze/removal_thread.h"
#include "ksmpy.h"
#include "os/apart.h"
#include "os/clock.h"
#include "os/files.h"
#include "os/given_back.h"
#include "os/handlers.h"
#include "os/map.h"
#include "os/own_memory.h"
#include "os/pagemap.h"
#include "os/proc_maps.h"
#include "os/uffd.h"
#include "pages.h"

#define N 16
#define FIRST 8 /* the part that its owner maps over: pages [FIRST, END) */
#define END 12
/* More pages than there are free between the libraries, and no number of huge pages. */
#define LARGE (64 * HUGE_PAGES + 1)
#define TRIES 32
#define OWN 500 /* the seed of what it writes there */
#define PATIENCE 10 /* s */

static int way;
static bool tracked;
static uintptr_t range; /* N pages between two that nobody can reach */
static int frames; /* a file with the same bytes */
static struct freezer freezer;
static bool stuck; /* a thread waits for ever, and the freezer cannot end */

/* ---- the places ---- */

static void (*before_watching)(void); /* once: an overlay was mapped, and belongs to nobody yet */
static void (*before_blocking)(void); /* once: the range is about to be made read-only */
static void (*before_moving)(void); /* once: the range is about to be taken away */
static void (*after_moving)(void); /* once: a part of the range was taken away */
static void (*before_mremap)(void); /* once: a library's call is about to be made */
static void (*before_asking)(void); /* once: something is about to be asked of /proc */
static void (*before_replacing)(void); /* once: copies are about to be moved over overlays */
static void (*after_looking)(void); /* once: which pages show frames has been told of each */
static bool nobody_is_seen; /* in madvise() */
static _Atomic bool nothing_is_known; /* of what pages show */
static pthread_t writer;
static _Atomic bool given_back, written;
static _Atomic int refused_fd = -1; /* what belongs to it is not given back */
static _Atomic int asked; /* how often somebody missed a page that belongs with the overlays */

void __real_freezer_watch_overlay(struct freezer *fz, uintptr_t address, uint64_t n);
void *__real_mremap(void *from, size_t before, size_t after, int flags, ...);
int __real_os_ask(os_question_apart *ask, void *data);
int __real_handlers_install(void);
int64_t __real_os_uffd_move(int fd, uintptr_t to, uintptr_t from, uint64_t n);
int __real_os_remap(uintptr_t to, uintptr_t from, uint64_t n, bool keep);
bool __real_os_can_map(uint64_t n);
int __real_os_uffd_unregister(int fd, uintptr_t address, uint64_t n);
int __real_os_uffd_read(int fd, uintptr_t *start, uintptr_t *end);
int __real_os_pages(int pagemap_fd, uintptr_t address, uint64_t n, uint8_t *kinds);
int __real_os_removals(int tasks_fd, struct os_removal *removals, int max, bool *running);

static void act(void (**action)(void))
{
    void (*chosen)(void) = *action;
    *action = NULL;
    if (chosen)
        chosen();
}

void __wrap_freezer_watch_overlay(struct freezer *fz, uintptr_t address, uint64_t n)
{
    act(&before_watching);
    __real_freezer_watch_overlay(fz, address, n);
}

void *__wrap_mremap(void *from, size_t before, size_t after, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    void *to = va_arg(more, void *);
    va_end(more);
    act(&before_mremap);
    return __real_mremap(from, before, after, flags, to);
}

int __wrap_os_ask(os_question_apart *ask, void *data)
{
    act(&before_asking);
    return __real_os_ask(ask, data);
}

int __wrap_handlers_install(void)
{
    act(&before_blocking);
    return __real_handlers_install();
}

int64_t __wrap_os_uffd_move(int fd, uintptr_t to, uintptr_t from, uint64_t n)
{
    if (from == range)
        act(&before_moving);
    return __real_os_uffd_move(fd, to, from, n);
}

int __wrap_os_remap(uintptr_t to, uintptr_t from, uint64_t n, bool keep)
{
    if (from == range)
        act(&before_moving);
    int error = __real_os_remap(to, from, n, keep);
    if (from == range && !error)
        act(&after_moving);
    return error;
}

bool __wrap_os_can_map(uint64_t n)
{
    act(&before_replacing);
    return __real_os_can_map(n);
}

int __wrap_os_uffd_read(int fd, uintptr_t *start, uintptr_t *end)
{
    int event = __real_os_uffd_read(fd, start, end);
    if (event == OS_UFFD_FAULT && fd == freezer.removals.overlay_fd)
        atomic_fetch_add(&asked, 1);
    return event;
}

int __wrap_os_uffd_unregister(int fd, uintptr_t address, uint64_t n)
{
    return fd == refused_fd ? -ENOMEM : __real_os_uffd_unregister(fd, address, n);
}

int __wrap_os_pages(int pagemap_fd, uintptr_t address, uint64_t n, uint8_t *kinds)
{
    int error = __real_os_pages(pagemap_fd, address, n, kinds);
    if (!error && !memchr(kinds, OS_PAGE_UNTOLD, n))
        act(&after_looking);
    return nothing_is_known ? -EIO : error;
}

int __wrap_os_removals(int tasks_fd, struct os_removal *removals, int max, bool *running)
{
    if (!nobody_is_seen)
        return __real_os_removals(tasks_fd, removals, max, running);
    *running = false;
    return 0;
}

/* ---- who is there ---- */

static void map_over(void)
{
    CHECK(os_map_anonymous(range + bytes_of(FIRST), END - FIRST, 0) == 0);
}

/* Code, say: whoever runs it needs just these rights. */
/* Which nobody has made read-only but its owner. */
static void map_constants_over(void)
{
    CHECK(mmap(page_at(range, FIRST), bytes_of(END - FIRST), PROT_READ,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page_at(range, FIRST));
}

static bool constants_are_there(void)
{
    struct os_vma vma;
    os_maps_refresh(&freezer.removals.maps);
    return os_maps_find(&freezer.removals.maps, range + bytes_of(FIRST), &vma) > 0 &&
           vma.end == range + bytes_of(END) && vma.private_ro;
}

static void map_code_over(void)
{
    CHECK(mmap(page_at(range, FIRST), bytes_of(END - FIRST), PROT_READ | PROT_EXEC,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page_at(range, FIRST));
}

static bool code_is_there(void)
{
    struct os_vma vma;
    os_maps_refresh(&freezer.removals.maps);
    return os_maps_find(&freezer.removals.maps, range + bytes_of(FIRST), &vma) > 0 &&
           vma.end == range + bytes_of(END) && !vma.private_rw && !vma.private_ro;
}

static void map_over_and_write(void)
{
    map_over();
    fill(page_at(range, FIRST), END - FIRST, OWN);
}

/* Of the owner's own part, and of what is around it. */
static bool has_its_own(void)
{
    return filled(page_at(range, FIRST), END - FIRST, OWN) &&
           filled((const uint8_t *)range, FIRST, 1) &&
           filled(page_at(range, END), N - END, 1 + END);
}

static uintptr_t elsewhere; /* where its owner has moved a page to */

/* The mapping stays, empty, as collectors that compact have it. */
static bool move_elsewhere(uint64_t page)
{
    elsewhere = (uintptr_t)os_reserve(PAGE_SIZE);
    return elsewhere && __real_os_remap(elsewhere, range + bytes_of(page), 1, true) == 0;
}

static bool begin(void)
{
    uint64_t inode = 0, dev = 0;
    uintptr_t base = (uintptr_t)os_alloc_in_step(bytes_of(N + 2), 0); /* within one huge page */
    range = base + PAGE_SIZE;
    if (stuck || !base || os_protect(base, 1, false) || os_protect(range + bytes_of(N), 1, false))
        return false;
    fill((uint8_t *)range, N, 1);
    frames = os_memfd("frames", bytes_of(N));
    if (freezer_init(&freezer, way, tracked))
        return false;
    os_know_file(frames, &inode, &dev);
    freezer_know_store(&freezer, inode, dev);
    if (freezer_attach(&freezer, range, N))
        return false;
    return os_write(frames, 0, (void *)range, N) == N;
}

static void end(void)
{
    os_unmap((void *)(range - PAGE_SIZE), bytes_of(N + 2));
    freezer_destroy(&freezer);
    close(frames);
}

/* The kernel leaves a page where it is that somebody holds for a moment, the reclaimer for one. */
static bool freeze_all(const uint8_t **view, bool zeros)
{
    for (int tries = 0; tries < 1000; tries++) {
        int64_t got = (zeros ? freeze_for_zeros : freeze)(&freezer, range, N, view);
        if (got == N)
            return true;
        if (got > 0) {
            freeze_restore(&freezer, 0, (uint64_t)got);
            thaw(&freezer);
        }
        os_sleep_us(1000);
    }
    return false;
}

static void *touch(void *page)
{
    return (void *)(uintptr_t)(1 + *(volatile uint8_t *)page);
}

/* What a thread reads there, before patience is at its end; -1: it waits. */
static int read_at(uint64_t page)
{
    pthread_t thread;
    struct timespec until;
    void *got;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PATIENCE;
    if (pthread_create(&thread, NULL, touch, page_at(range, page)))
        return -1;
    stuck = pthread_timedjoin_np(thread, &got, &until) != 0;
    return stuck ? -1 : (int)(uintptr_t)got - 1;
}

/* ---- what its owner moves ---- */

static void the_first_page_moves(void)
{
    CHECK(move_elsewhere(0));
}

static void a_page_that_lends_its_identity_can_be_moved(void)
{
    REQUIRE(begin());
    after_moving = the_first_page_moves;
    uintptr_t shadow = freezer_shadow(&freezer, range, N, 0);
    act(&after_moving);
    CHECK(shadow && filled((const uint8_t *)elsewhere, 1, 1));
    os_unmap((void *)shadow, bytes_of(N + 1));
    os_unmap((void *)elsewhere, PAGE_SIZE);
    end();
}

/* Memory of others, and memory of the engine's own right below it. */
static uint8_t *theirs, *ours;

/*
 * Where the kernel goes upwards (ulimit -s unlimited) nothing is mapped right below others.  Those
 * that are no neighbours, as they lie in different holes, stay: so the holes are full some time.
 */
static bool map_neighbours(void)
{
    for (int tries = 0; tries < TRIES; tries++) {
        theirs = mmap(NULL, bytes_of(LARGE), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        ours = os_alloc(bytes_of(LARGE));
        if (theirs == MAP_FAILED || !ours || ours > theirs)
            break;
        if (page_at((uintptr_t)ours, LARGE) + OS_SPARE == theirs)
            return true;
    }
    CHECK(theirs != MAP_FAILED && ours > theirs);
    return false;
}

static void unmap_neighbours(uint64_t first, uint64_t n)
{
    os_unmap(ours + bytes_of(first), bytes_of(n));
    CHECK(!os_owns((uintptr_t)ours) && !os_is_mapped((uintptr_t)ours + bytes_of(LARGE - 1)));
    CHECK(os_is_mapped((uintptr_t)theirs));
    munmap(theirs, bytes_of(LARGE));
}

static void the_engine_can_do_without_the_page_below_others(void)
{
    for (int taken = 0; taken < 2 && map_neighbours(); taken++) {
        uintptr_t end = (uintptr_t)theirs, spare = end - OS_SPARE;
        CHECK(os_owns(spare) && os_owns(end - 1) && !os_owns(end) && os_is_mapped(end - PAGE_SIZE));
        CHECK(!os_take_spare(spare) && !os_take_spare(end + OS_SPARE));
        CHECK(!taken || (os_take_spare(end) && !os_take_spare(end) && !os_owns(spare)));
        unmap_neighbours(0, LARGE);
        CHECK(os_is_mapped(spare) == taken && !os_take_spare(end));
        munmap((void *)spare, OS_SPARE);
    }
}

static void a_part_of_the_engines_memory_keeps_its_spare_page(void)
{
    if (!map_neighbours())
        return;
    uintptr_t spare = (uintptr_t)theirs - OS_SPARE;
    os_unmap(ours, PAGE_SIZE);
    os_unmap(ours + bytes_of(N), PAGE_SIZE);
    CHECK(os_owns(spare) && os_is_mapped(spare) && !os_owns((uintptr_t)ours + bytes_of(N)));
    os_unmap(ours + PAGE_SIZE, bytes_of(N - 1));
    CHECK(os_owns(spare) && os_is_mapped(spare));
    unmap_neighbours(N + 1, LARGE - N - 1);
    CHECK(!os_owns(spare) && !os_is_mapped(spare));
}

static void a_shadow_gets_the_page_that_the_engine_can_do_without(void)
{
    struct freezer fz;
    bool borrows = way == KSMPY_FREEZE_UFFD_WP || way == KSMPY_FREEZE_SIGNAL;
    if (!borrows || !map_neighbours())
        return;
    uintptr_t address = (uintptr_t)theirs, page = address - PAGE_SIZE;
    REQUIRE(os_commit(theirs, bytes_of(LARGE)) == 0);
    memset(theirs, 1, bytes_of(N));
    memset(ours + bytes_of(LARGE - N), 1, bytes_of(N));
    REQUIRE(freezer_init(&fz, way, tracked) == 0 && freezer_attach(&fz, address, N) == 0);
    uintptr_t shadow = freezer_shadow(&fz, address, N, 0);
    CHECK(shadow && fz.kept[0] == page && os_owns(page));
    os_unmap((void *)shadow, bytes_of(N + 1));
    freezer_destroy(&fz);
    CHECK(!os_owns(page) && !os_is_mapped(page) && theirs[0] == 1);
    unmap_neighbours(0, LARGE);
}

static void *write_late(void *page)
{
    *(volatile uint8_t *)page = OWN % 256;
    atomic_store(&written, true);
    return NULL;
}

static void wait_for(_Atomic bool *flag, unsigned milliseconds)
{
    for (unsigned i = 0; i < milliseconds && !atomic_load(flag); i++)
        os_sleep_us(1000);
}

/* Nothing protects a page that comes where one was moved away. */
static void a_page_moves_and_another_comes(void)
{
    written = false;
    CHECK(move_elsewhere(FIRST));
    CHECK(pthread_create(&writer, NULL, write_late, page_at(range, FIRST)) == 0);
    wait_for(&written, 100);
}

/* The range is not frozen any more. */
static bool is_written(uint8_t rest)
{
    const uint8_t *page = page_at(range, FIRST);
    wait_for(&written, 1000 * PATIENCE);
    stuck = !written;
    if (stuck)
        return false;
    pthread_join(writer, NULL);
    return page[0] == OWN % 256 && page[1] == rest;
}

static void moves_while_it_is_frozen(bool zeros)
{
    const uint8_t *view;
    if (zeros)
        memset((void *)range, 0, bytes_of(N));
    REQUIRE(freeze_all(&view, zeros));
    a_page_moves_and_another_comes();
    if ((zeros ? freeze_zero(&freezer, 0, N, 0) : freeze_overlay(&freezer, 0, N, frames, 0)) < 0)
        freeze_restore(&freezer, 0, N);
    thaw(&freezer);
    REQUIRE(is_written(0));
    CHECK(zeros ? *(uint8_t *)elsewhere == 0 : filled((const uint8_t *)elsewhere, 1, 1 + FIRST));
    os_unmap((void *)elsewhere, PAGE_SIZE);
}

static void what_is_written_where_a_frozen_page_was_stays(void)
{
    REQUIRE(begin());
    moves_while_it_is_frozen(false);
    end();
}

static void what_is_written_where_a_page_of_zeros_was_stays(void)
{
    REQUIRE(begin());
    moves_while_it_is_frozen(true);
    end();
}

static bool rights_can_be_asked(void)
{
    return freezer.wp_fd >= 0 || freezer.removals.maps.query;
}

static void freeze_where_others_map(void (*what)(void), bool (*is_there)(void))
{
    const uint8_t *view;
    REQUIRE(begin());
    before_blocking = rights_can_be_asked() ? what : NULL;
    int64_t got = freeze(&freezer, range, N, &view);
    if (got > 0) {
        freeze_restore(&freezer, 0, (uint64_t)got);
        thaw(&freezer);
    }
    CHECK(!before_blocking && (!rights_can_be_asked() || (got < 0 && is_there())));
    end();
}

static void what_is_mapped_where_pages_are_to_be_frozen_keeps_its_rights(void)
{
    freeze_where_others_map(map_code_over, code_is_there);
    freeze_where_others_map(map_constants_over, constants_are_there);
}

/* ---- merging ---- */

/* It is memory of no page yet: whoever touches it finds zeros, and asks nobody for them. */
static void what_is_mapped_over_a_new_overlay_can_be_read(void)
{
    const uint8_t *view;
    REQUIRE(begin() && freeze_all(&view, false));
    before_watching = map_over;
    CHECK(freeze_overlay(&freezer, 0, N, frames, 0) == 0);
    thaw(&freezer);
    CHECK(!before_watching);
    asked = 0;
    REQUIRE(read_at(FIRST) == 0);
    CHECK(asked == 0);
    CHECK(filled((const uint8_t *)range, FIRST, 1));
    end();
}

/* But for overlays: some that their owner has protected come back to nobody. */
static void what_is_no_overlay_is_let_go_when_a_region_ends(void)
{
    const uint8_t *view;
    REQUIRE(begin() && freeze_all(&view, false));
    before_watching = map_over;
    CHECK(freeze_overlay(&freezer, 0, N, frames, 0) == 0);
    thaw(&freezer);
    freezer_detach(&freezer, range, N);
    CHECK(!os_uffd_is_registered(freezer.wp_fd, range + bytes_of(FIRST), END - FIRST));
    CHECK(freezer_register(&freezer, range, 1) == -EBUSY);
    end();
}

/* At the limit of mappings, say, what was frozen may not find back to its home. */
static void what_stays_at_the_gate_can_be_read(void)
{
    const uint8_t *view;
    REQUIRE(begin() && freeze_all(&view, false));
    refused_fd = freezer.removals.gate_fd;
    freeze_restore(&freezer, 0, N);
    thaw(&freezer);
    refused_fd = -1;
    CHECK(madvise(page_at(range, FIRST), PAGE_SIZE, MADV_DONTNEED) == 0);
    REQUIRE(read_at(FIRST) == 0);
    CHECK(filled((const uint8_t *)range, FIRST, 1));
    end();
}

static void map_all_over_and_write(void)
{
    CHECK(os_map_anonymous(range, N, 0) == 0);
    fill((uint8_t *)range, N, OWN);
}

/* Its pages are taken away as well, and it does not wait for them: they are back at once. */
static void who_got_the_place_gets_its_pages_back(void)
{
    const uint8_t *view;
    REQUIRE(begin());
    before_moving = map_all_over_and_write;
    int64_t got = freeze(&freezer, range, N, &view);
    CHECK(!before_moving && got < 0);
    if (got > 0) {
        freeze_restore(&freezer, 0, (uint64_t)got);
        thaw(&freezer);
    }
    CHECK(filled((const uint8_t *)range, N, OWN));
    end();
}

/* ---- unmerging ---- */

static void merge(void)
{
    REQUIRE(os_map_frames(range, N, frames, 0) == 0);
    REQUIRE(freezer_track_overlay(&freezer, range, N) == 0);
}

static void what_is_mapped_over_overlays_on_their_way_back_stays(void)
{
    REQUIRE(begin());
    if (!rights_can_be_asked()) {
        end();
        SKIP("before Linux 6.11 nobody asks what is mapped there");
    }
    merge();
    before_replacing = map_over_and_write;
    CHECK(freezer_unoverlay(&freezer, range, N, 0, 0, false) == -ESTALE);
    CHECK(!before_replacing && has_its_own());
    end();
}

static void maps_code_at(void (**when)(void))
{
    REQUIRE(begin());
    merge();
    *when = rights_can_be_asked() ? map_code_over : NULL;
    int error = freezer_unoverlay(&freezer, range, N, 0, 0, false);
    CHECK(!*when && (!rights_can_be_asked() || (error == -ESTALE && code_is_there())));
    end();
}

/* It is neither made read-only nor, when the overlays do not come back, writable. */
static void what_is_mapped_over_overlays_keeps_its_rights(void)
{
    maps_code_at(&before_replacing);
    if (way == KSMPY_FREEZE_SIGNAL)
        maps_code_at(&before_blocking);
}

/* Its owner has moved a part of them away and back: nobody watches it, until it is registered as memory. */
static void overlays_that_were_taken_for_memory_come_back(void)
{
    REQUIRE(begin());
    merge();
    REQUIRE(os_uffd_unregister(freezer.removals.overlay_fd, range + bytes_of(FIRST), END - FIRST) ==
            0);
    REQUIRE(freezer_register(&freezer, range + bytes_of(FIRST), END - FIRST) == 0);
    CHECK(freezer_unoverlay(&freezer, range, N, 0, 0, false) == 0);
    CHECK(filled((const uint8_t *)range, N, 1));
    end();
}

/* The mapping shows its frame there again, until it is written. */
static void what_is_written_where_an_overlay_was_stays(void)
{
    REQUIRE(begin());
    merge();
    uint8_t rest = ((const uint8_t *)page_at(range, FIRST))[1];
    before_replacing = a_page_moves_and_another_comes;
    freezer_unoverlay(&freezer, range, N, 0, 0, false);
    REQUIRE(!before_replacing && is_written(rest));
    CHECK(filled((const uint8_t *)elsewhere, 1, 1 + FIRST));
    os_unmap((void *)elsewhere, PAGE_SIZE);
    end();
}

/* ---- moving ---- */

static int64_t got;
static uintptr_t shadow;

static void merge_it(void)
{
    const uint8_t *view;
    got = freeze(&freezer, range, N, &view);
    if (got <= 0)
        return;
    if (freeze_overlay(&freezer, 0, (uint64_t)got, frames, 0) < 0)
        freeze_restore(&freezer, 0, (uint64_t)got);
    thaw(&freezer);
}

static void bring_it_back(void)
{
    got = freezer_unoverlay(&freezer, range, N, 0, 0, false);
}

static void take_its_identity(void)
{
    shadow = freezer_shadow(&freezer, range, N, 0);
}

/* Does a library that has the range made longer get memory, with its bytes and zeros behind them? */
static bool grows(void)
{
    struct os_vma vma;
    uint8_t *at = moving_mremap((void *)range, bytes_of(N), bytes_of(N + 1), MREMAP_MAYMOVE);
    if (at == MAP_FAILED)
        return false;
    os_maps_refresh(&freezer.removals.maps);
    bool well = os_maps_find(&freezer.removals.maps, (uintptr_t)at, &vma) > 0 && !vma.inode &&
                vma.end >= (uintptr_t)at + bytes_of(N + 1) && filled(at, N, 1) && !at[bytes_of(N)];
    munmap(at, bytes_of(N + 1));
    return well;
}

/* The kernel would show frames behind those of an overlay. */
static void what_is_about_to_move_is_not_merged(void)
{
    REQUIRE(begin());
    before_mremap = merge_it;
    CHECK(grows() && !before_mremap && got == -EAGAIN);
    end();
}

/* What is unmapped just then may be another's by the time it would come back. */
static void what_is_about_to_move_stays_merged(void)
{
    REQUIRE(begin());
    merge();
    before_asking = bring_it_back;
    CHECK(grows() && !before_asking && got == -EBUSY);
    end();
}

static void what_is_about_to_move_lends_no_identity(void)
{
    REQUIRE(begin());
    before_asking = take_its_identity;
    shadow = 1;
    CHECK(grows() && !before_asking && !shadow);
    end();
}

static void what_has_moved_can_be_merged_again(void)
{
    REQUIRE(begin());
    CHECK(grows() && !moving_meets(range, N));
    end();
}

static int status_of_child;

static void fork_meanwhile(void)
{
    pid_t child = fork();
    if (child == 0)
        _exit(moving_meets(range, N));
    CHECK(child > 0 && waitpid(child, &status_of_child, 0) == child);
}

static void nothing_is_about_to_move_in_a_child(void)
{
    ksmpy_engine *engine = engine_of(way, KSMPY_TRACKING_AUTO, 1);
    REQUIRE(engine && begin());
    before_mremap = fork_meanwhile;
    status_of_child = -1;
    CHECK(grows() && status_of_child == 0);
    end();
    CHECK(ksmpy_engine_close(engine) == 0);
}

/* ---- giving back ---- */

/* The owner has its pages back by then, and has no reason to wait. */
static void write_what_was_given_back(void)
{
    wait_for(&given_back, 1000 * PATIENCE);
    CHECK(pthread_create(&writer, NULL, write_late, page_at(range, FIRST)) == 0);
    wait_for(&written, 100); /* it waits, if all is well */
}

static void see_nobody(bool so)
{
    removals_hold(&freezer);
    nobody_is_seen = so;
    after_looking = so ? write_what_was_given_back : NULL;
    removals_let_go(&freezer);
}

/* Which thread it is that gives back could not be seen: its pages are zeros a moment too late. */
static void what_is_written_after_giving_back_stays(void)
{
    REQUIRE(begin());
    merge();
    written = given_back = false;
    see_nobody(true);
    CHECK(madvise(page_at(range, FIRST), bytes_of(END - FIRST), MADV_DONTNEED) == 0);
    atomic_store(&given_back, true);
    wait_for(&written, 1000 * PATIENCE);
    REQUIRE(written && !pthread_join(writer, NULL));
    see_nobody(false); /* once the thread has done its work */
    uint8_t *page = page_at(range, FIRST);
    CHECK(page[0] == OWN % 256);
    for (uint64_t i = 1; i < bytes_of(END - FIRST); i++)
        if (page[i]) {
            CHECK(!"zeros");
            break;
        }
    CHECK(filled((const uint8_t *)range, FIRST, 1));
    end();
}

/* The late replacing fails, and the kernel does not take the overlays from the gate either. */
static void what_stays_an_overlay_can_be_written(void)
{
    REQUIRE(begin());
    merge();
    written = false;
    see_nobody(true);
    after_looking = NULL;
    nothing_is_known = true;
    refused_fd = freezer.removals.gate_fd;
    CHECK(madvise(page_at(range, FIRST), PAGE_SIZE, MADV_DONTNEED) == 0);
    REQUIRE(pthread_create(&writer, NULL, write_late, page_at(range, FIRST)) == 0);
    wait_for(&written, 1000 * PATIENCE);
    CHECK(written);
    if (!written)
        exit(finish()); /* with that thread nothing can end */
    pthread_join(writer, NULL);
    see_nobody(false);
    nothing_is_known = false;
    refused_fd = -1;
    end();
}

static void *give_back_and_write(void *page)
{
    CHECK(madvise(page, PAGE_SIZE, MADV_DONTNEED) == 0);
    return write_late(page);
}

/* Its owner takes them for its own again, while they are about to become holes. */
static void what_is_written_to_zeros_after_giving_them_back_stays(void)
{
    const uint8_t *view;
    REQUIRE(begin());
    memset((void *)range, 0, bytes_of(N));
    REQUIRE(freeze_all(&view, true));
    written = false;
    REQUIRE(pthread_create(&writer, NULL, give_back_and_write, page_at(range, FIRST)) == 0);
    wait_for(&written, 100); /* it waits, if all is well */
    CHECK(freeze_zero(&freezer, 0, N, 0) == 0);
    thaw(&freezer);
    wait_for(&written, 1000 * PATIENCE);
    REQUIRE(written && !pthread_join(writer, NULL));
    const uint8_t *memory = (const uint8_t *)range;
    for (uint64_t i = 0; i < bytes_of(N); i++)
        if (memory[i] != (i == bytes_of(FIRST) ? OWN % 256 : 0)) {
            CHECK(!"what was written, and zeros");
            break;
        }
    end();
}

static void in_this_way(void)
{
    RUN(what_is_written_to_zeros_after_giving_them_back_stays);
    bool takes_away = way == KSMPY_FREEZE_UFFD_MOVE || way == KSMPY_FREEZE_UFFD_REMAP;
    RUN(what_is_mapped_over_a_new_overlay_can_be_read);
    if (way != KSMPY_FREEZE_SIGNAL)
        RUN(what_is_no_overlay_is_let_go_when_a_region_ends);
    if (takes_away) {
        RUN(what_stays_at_the_gate_can_be_read);
        RUN(who_got_the_place_gets_its_pages_back);
    }
    if (!takes_away)
        RUN(a_page_that_lends_its_identity_can_be_moved);
    RUN(a_shadow_gets_the_page_that_the_engine_can_do_without);
    if (way == KSMPY_FREEZE_UFFD_WP)
        RUN(what_is_written_where_a_frozen_page_was_stays);
    if (way == KSMPY_FREEZE_UFFD_WP || way == KSMPY_FREEZE_UFFD_REMAP)
        RUN(what_is_written_where_a_page_of_zeros_was_stays);
    if (way != KSMPY_FREEZE_SIGNAL)
        RUN(what_is_written_where_an_overlay_was_stays);
    if (way == KSMPY_FREEZE_SIGNAL)
        RUN(what_is_mapped_where_pages_are_to_be_frozen_keeps_its_rights);
    RUN(what_is_about_to_move_is_not_merged);
    RUN(what_is_about_to_move_stays_merged);
    RUN(what_is_about_to_move_lends_no_identity);
    RUN(what_has_moved_can_be_merged_again);
    RUN(nothing_is_about_to_move_in_a_child);
    RUN(what_is_mapped_over_overlays_on_their_way_back_stays);
    RUN(what_is_mapped_over_overlays_keeps_its_rights);
    if (way != KSMPY_FREEZE_SIGNAL) {
        RUN(overlays_that_were_taken_for_memory_come_back);
        RUN(what_is_written_after_giving_back_stays);
        RUN(what_stays_an_overlay_can_be_written);
    }
}

int main(void)
{
    RUN(the_engine_can_do_without_the_page_below_others);
    RUN(a_part_of_the_engines_memory_keeps_its_spare_page);
    for (way = KSMPY_FREEZE_UFFD_MOVE; way <= KSMPY_FREEZE_UFFD_WP; way++)
        for (int i = 0; i < 2; i++) {
            tracked = i;
            bool here = freezer_init(&freezer, way, tracked) == 0;
            printf("freeze %d%s%s\n", way, tracked ? ", tracked" : "", here ? "" : ": not here");
            if (!here)
                continue;
            freezer_destroy(&freezer);
            in_this_way();
        }
    return finish();
}
