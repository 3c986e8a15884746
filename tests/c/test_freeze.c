/* What the owner does to a part of a range while all of it is frozen, or on its way back. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../support/variadic.h"
#include "base/pages.h"
#include "check.h"
#include "freeze/freezer.h"
#include "freeze/ready.h"
#include "freeze/registration.h"
#include "freeze/removal_thread.h"
#include "ksmpy.h"
#include "os/clock.h"
#include "os/files.h"
#include "os/map.h"
#include "os/pagemap.h"
#include "os/proc_maps.h"
#include "os/uffd.h"
#include "pages.h"

#define N 16
#define FIRST 8 /* the part that is changed: pages [FIRST, END) */
#define END 12
#define STACK_PAGES 512 /* the thread sanitizer takes 0.9 MiB of it */

static enum { DONTDUMP, DONTFORK, READ_ONLY, LOCK, UNMAP, CHANGES } change;
static int way;
static uintptr_t awaited; /* the change is made when something was moved to this address */
static uintptr_t forbidden; /* what is moved from this address is protected just then */
static uintptr_t refused; /* what is moved to this address is not, and its target is unmapped */
static int refusals; /* so often */
static uintptr_t
    limited; /* before something is moved to this address there may be no more memory */
static bool filtered; /* nothing may be moved */

static void refuse(uintptr_t to, int times)
{
    refused = to;
    refusals = times;
}

static void change_a_part(uintptr_t range)
{
    void *part = page_at(range, FIRST);
    size_t bytes = bytes_of(END - FIRST);
    if (change == DONTDUMP)
        madvise(part, bytes, MADV_DONTDUMP);
    else if (change == DONTFORK)
        madvise(part, bytes, MADV_DONTFORK);
    else if (change == READ_ONLY)
        mprotect(part, bytes, PROT_READ);
    else if (change == LOCK)
        mlock2(part, bytes, MLOCK_ONFAULT);
    else
        munmap(part, bytes);
}

static void limit_memory(rlim_t bytes)
{
    struct rlimit limit;
    getrlimit(RLIMIT_AS, &limit);
    limit.rlim_cur = least(bytes, limit.rlim_max);
    setrlimit(RLIMIT_AS, &limit);
}

long __real_syscall(long number, ...);

static void *moved(void *from, size_t before, size_t after, int flags, void *to)
{
    if (filtered) {
        errno = EPERM;
        return MAP_FAILED;
    }
    if (!(flags & MREMAP_FIXED))
        to = NULL;
    if (to && (uintptr_t)to == refused) {
        if (--refusals == 0)
            refused = 0;
        munmap(to, after);
        errno = ENOMEM;
        return MAP_FAILED;
    }
    bool limits = limited && (uintptr_t)to == limited;
    if (limits)
        limit_memory((rlim_t)PAGE_SIZE);
    bool forbids = forbidden && (uintptr_t)from == forbidden;
    if (forbids)
        mprotect(from, before, PROT_NONE);
    void *got = (void *)__real_syscall(SYS_mremap, from, before, after, (long)flags, to);
    if (limits && got != MAP_FAILED) {
        limited = 0;
        limit_memory(RLIM_INFINITY);
    }
    if (forbids) {
        mprotect(from, before, PROT_READ | PROT_WRITE);
        forbidden = 0;
    }
    if (to && (uintptr_t)to == awaited) {
        awaited = 0;
        change_a_part((uintptr_t)to);
    }
    return got;
}

__attribute__((no_sanitize_address)) long __wrap_syscall(long number, ...)
{
    TAKE_ARGUMENTS(a, number);
    if (number == SYS_mremap)
        return (long)moved((void *)a[0], a[1], a[2], (int)a[3], (void *)a[4]);
    return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* Every mapped page of the range still has its bytes. */
static bool intact(uintptr_t range)
{
    if (change != UNMAP)
        return filled((const uint8_t *)range, N, 1);
    return filled((const uint8_t *)range, FIRST, 1) &&
           filled(page_at(range, END), N - END, 1 + END);
}

/* Of pages [first, end) of the range; asks the kernel, and changes nothing. */
static bool any_can_be_written(uintptr_t range, uint64_t first, uint64_t end)
{
    for (uint64_t i = first; i < end; i++)
        if (os_populate(range + bytes_of(i), 1, true) == 0)
            return true;
    return false;
}

static bool crosses_huge_page(uintptr_t base)
{
    uintptr_t first = base + PAGE_SIZE, last = base + bytes_of(N);
    return first / bytes_of(HUGE_PAGES) != last / bytes_of(HUGE_PAGES);
}

/*
 * Between guard pages, so that no change can make it one mapping with others, and within one huge
 * page, as no more is frozen at once.
 */
static uintptr_t new_range(void)
{
    uintptr_t base = (uintptr_t)os_reserve(bytes_of(N + 2));
    for (int tries = 0; base && crosses_huge_page(base) && tries < 10; tries++) {
        uintptr_t other = (uintptr_t)os_reserve(bytes_of(N + 2));
        os_unmap((void *)base, bytes_of(N + 2));
        base = other;
    }
    if (!base || os_commit(page_at(base, 1), bytes_of(N)) < 0)
        return 0;
    fill(page_at(base, 1), N, 1);
    return base + PAGE_SIZE;
}

static void give_back(struct freezer *fz, uintptr_t range)
{
    os_unmap((void *)(range - PAGE_SIZE), bytes_of(N + 2));
    freezer_destroy(fz);
}

/* The kernel leaves a page where it is that somebody holds for a moment, the reclaimer for one. */
static bool freeze_all(struct freezer *fz, uintptr_t range, const uint8_t **view)
{
    for (int tries = 0; tries < 1000; tries++) {
        int64_t got = freeze(fz, range, N, view);
        if (got == N)
            return true;
        if (got > 0) {
            freeze_restore(fz, 0, (uint64_t)got);
            thaw(fz);
        }
        os_sleep_us(1000);
    }
    return false;
}

static void frozen_pages_come_back(void)
{
    struct freezer fz;
    const uint8_t *view;
    uintptr_t range = new_range();
    REQUIRE(range && freezer_init(&fz, way, false) == 0 && freezer_attach(&fz, range, N) == 0);
    REQUIRE(freeze_all(&fz, range, &view));
    change_a_part(range);
    freeze_restore(&fz, 0, N);
    thaw(&fz);
    CHECK(intact(range));
    give_back(&fz, range);
}

static volatile bool is_frozen;
static volatile sig_atomic_t called, called_while_frozen;

static void handle(int number)
{
    (void)number;
    called++;
    called_while_frozen += is_frozen;
}

static void no_handler_is_called_while_something_is_frozen(void)
{
    struct freezer fz;
    const uint8_t *view;
    struct sigaction action = {.sa_handler = handle}, before;
    uintptr_t range = new_range();
    REQUIRE(range && freezer_init(&fz, way, false) == 0 && freezer_attach(&fz, range, N) == 0);
    sigaction(SIGUSR1, &action, &before);
    called = called_while_frozen = 0;
    REQUIRE(freeze_all(&fz, range, &view));
    is_frozen = true;
    raise(SIGUSR1);
    freeze_restore(&fz, 0, N);
    is_frozen = false;
    thaw(&fz);
    CHECK(called == 1 && !called_while_frozen);
    raise(SIGUSR1);
    CHECK(called == 2);
    sigaction(SIGUSR1, &before, NULL);
    give_back(&fz, range);
}

static volatile uint8_t *to_write;
static atomic_bool has_written;

static void write_there(int number)
{
    (void)number;
    *to_write = 77;
    atomic_store(&has_written, true);
}

static void *wait_for_a_signal(void *nothing)
{
    while (!atomic_load(&has_written))
        os_sleep_us(100);
    return nothing;
}

/* The kernel ends a process of which a thread faults with SIGSEGV blocked. */
static void a_handler_that_blocks_all_signals_waits(void)
{
#ifdef __SANITIZE_THREAD__
    SKIP("the sanitizer's own handlers block all signals, whatever is asked for");
#endif
    struct freezer fz;
    const uint8_t *view;
    pthread_t thread;
    struct sigaction action = {.sa_handler = write_there, .sa_flags = SA_RESTART}, before;
    uintptr_t range = new_range();
    REQUIRE(range && freezer_init(&fz, way, false) == 0 && freezer_attach(&fz, range, N) == 0);
    sigfillset(&action.sa_mask);
    sigaction(SIGUSR1, &action, &before);
    to_write = page_at(range, 1);
    atomic_store(&has_written, false);
    REQUIRE(pthread_create(&thread, NULL, wait_for_a_signal, NULL) == 0);
    REQUIRE(freeze_all(&fz, range, &view));
    pthread_kill(thread, SIGUSR1);
    os_sleep_us(20000);
    CHECK(!atomic_load(&has_written) && *to_write != 77);
    freeze_restore(&fz, 0, N);
    thaw(&fz);
    pthread_join(thread, NULL);
    CHECK(*to_write == 77);
    sigaction(SIGUSR1, &before, &action);
    CHECK(action.sa_handler == write_there && action.sa_flags & SA_RESTART);
    CHECK(sigismember(&action.sa_mask, SIGTERM) == 1 && sigismember(&action.sa_mask, SIGUSR1) == 1);
    give_back(&fz, range);
}

static void know(struct freezer *fz, int memfd)
{
    uint64_t inode = 0, dev = 0;
    os_know_file(memfd, &inode, &dev);
    freezer_know_store(fz, inode, dev);
}

/* A range that may be frozen, and a file with the same bytes. */
static bool begin(struct freezer *fz, uintptr_t *range, int *memfd)
{
    *range = new_range();
    *memfd = os_memfd("frames", bytes_of(N));
    if (!*range || *memfd < 0 || freezer_init(fz, way, false) < 0)
        return false;
    know(fz, *memfd);
    return freezer_attach(fz, *range, N) == 0 && os_write(*memfd, 0, (void *)*range, N) == N;
}

static void end(struct freezer *fz, uintptr_t range, int memfd)
{
    give_back(fz, range);
    close(memfd);
}

/* The program has closed a descriptor, and opened a file that has its number now. */
static void becomes(int fd, int other)
{
    if (fd >= 0)
        dup2(other, fd);
}

static void what_is_mapped_is_the_store(void)
{
    struct freezer fz;
    const uint8_t *view;
    uintptr_t range;
    int memfd, other = os_memfd("other", bytes_of(N));
    REQUIRE(begin(&fz, &range, &memfd) && freeze_all(&fz, range, &view));
    becomes(memfd, other);
    CHECK(freeze_overlay(&fz, 0, N, memfd, 0) == -EBADF);
    freeze_restore(&fz, 0, N);
    thaw(&fz);
    CHECK(filled((const uint8_t *)range, N, 1));
    end(&fz, range, memfd);
    close(other);
}

/* Nothing is merged then, as nobody can tell whose the memory is, and no other file is touched. */
static void frozen_pages_come_back_without_descriptors(void)
{
    struct freezer fz;
    const uint8_t *view;
    uintptr_t range;
    int memfd, other = os_memfd("other", PAGE_SIZE);
    REQUIRE(begin(&fz, &range, &memfd) && freeze_all(&fz, range, &view));
    const int ours[] = {
        fz.uffd, fz.wp_fd, fz.pagemap_fd, fz.tasks_fd, fz.removals.overlay_fd, fz.removals.gate_fd};
    for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
        becomes(ours[i], other);
    REQUIRE(lseek(other, 5, SEEK_SET) == 5);
    CHECK(way == KSMPY_FREEZE_SIGNAL || freeze_overlay(&fz, 0, N, memfd, 0) == -ECANCELED);
    freeze_restore(&fz, 0, N);
    thaw(&fz);
    CHECK(filled((const uint8_t *)range, N, 1));
    memset((void *)range, 2, bytes_of(N));
    CHECK(freeze(&fz, range, N, &view) <= 0 || (thaw(&fz), way == KSMPY_FREEZE_SIGNAL));
    CHECK(lseek(other, 0, SEEK_CUR) == 5 && os_file_size(other) == PAGE_SIZE);
    end(&fz, range, memfd);
    close(other);
}

static void overlays_come_back(void)
{
    struct freezer fz;
    uintptr_t range;
    int memfd;
    REQUIRE(begin(&fz, &range, &memfd));
    know(&fz, memfd);
    REQUIRE(os_map_frames(range, N, memfd, 0) == 0);
    awaited = range;
    CHECK(freezer_unoverlay(&fz, range, N, 0, 0, false) == 0 && !awaited);
    CHECK(intact(range));
    end(&fz, range, memfd);
}

/* The message of its thread was read, and that may take its pages away at any moment. */
static void what_is_being_given_back_is_not_frozen(void)
{
    struct freezer fz;
    const uint8_t *view;
    uintptr_t range = new_range();
    REQUIRE(range && freezer_init(&fz, way, false) == 0 && freezer_attach(&fz, range, N) == 0);
    fz.removals.leavers[0] = (struct leaver){.start = range + bytes_of(END - 1),
                                             .end = range + bytes_of(END),
                                             .until = os_now_ns() + (uint64_t)1000000000000};
    fz.removals.leavers_n = 1;
    CHECK(freeze(&fz, range, N, &view) == -EAGAIN);
    CHECK(fz.removals.leavers_n == 1);
    fz.removals.leavers[0].until = os_now_ns();
    REQUIRE(freeze_all(&fz, range, &view));
    CHECK(fz.removals.leavers_n == 0);
    freeze_restore(&fz, 0, N);
    thaw(&fz);
    CHECK(filled((const uint8_t *)range, N, 1));
    give_back(&fz, range);
}

static void forbid_a_part(uintptr_t range)
{
    mprotect(page_at(range, FIRST), bytes_of(END - FIRST), PROT_NONE);
}

static void allow_a_part(uintptr_t range)
{
    mprotect(page_at(range, FIRST), bytes_of(END - FIRST), PROT_READ | PROT_WRITE);
}

/* Its owner takes the rights away while it is frozen: no overlay gives them back, nor does a thaw. */
static void what_is_protected_stays_protected(void)
{
    struct freezer fz;
    const uint8_t *view;
    uintptr_t range;
    int memfd;
    REQUIRE(begin(&fz, &range, &memfd));
    REQUIRE(freeze_all(&fz, range, &view));
    if (!fz.removals.maps.query) { /* before Linux 6.11 nobody asks about rights */
        freeze_restore(&fz, 0, N);
        thaw(&fz);
        end(&fz, range, memfd);
        return;
    }
    forbid_a_part(range);
    CHECK(freeze_overlay(&fz, FIRST, END - FIRST, memfd, bytes_of(FIRST)) == -ECANCELED);
    CHECK(freeze_zero(&fz, FIRST, END - FIRST, 0) == -ECANCELED);
    CHECK(freeze_overlay(&fz, 0, FIRST, memfd, 0) == 0);
    freeze_restore(&fz, FIRST, N - FIRST);
    thaw(&fz);
    CHECK(!any_can_be_written(range, FIRST, END));
    CHECK(freeze(&fz, range + bytes_of(FIRST), 1, &view) == -EPERM);
    allow_a_part(range);
    CHECK(filled((const uint8_t *)range, N, 1));
    end(&fz, range, memfd);
}

/* What was protected when it was taken away, and is allowed again by the time it comes back. */
static void what_is_allowed_stays_allowed(void)
{
    struct freezer fz;
    const uint8_t *view;
    uintptr_t range = new_range();
    REQUIRE(range && freezer_init(&fz, way, false) == 0 && freezer_attach(&fz, range, N) == 0);
    forbidden = range;
    int64_t got = freeze(&fz, range, N, &view);
    if (got > 0) {
        freeze_restore(&fz, 0, (uint64_t)got);
        thaw(&fz);
    }
    CHECK(!forbidden == (way == KSMPY_FREEZE_UFFD_REMAP));
    for (uint64_t i = 0; i < N; i++)
        CHECK(os_populate(range + bytes_of(i), 1, true) == 0);
    CHECK(filled((const uint8_t *)range, N, 1));
    give_back(&fz, range);
}

/* Where readers go on, what lies in the place of a huge page is frozen together, and nothing behind it. */
static void a_freeze_ends_where_it_holds_somebody_up(void)
{
    struct freezer fz;
    uintptr_t place = (uintptr_t)os_alloc_in_step(bytes_of(2 * HUGE_PAGES), 0);
    uint64_t most = way == KSMPY_FREEZE_UFFD_WP ? HUGE_PAGES - 1 : FREEZE_MAX;
    REQUIRE(place && freezer_init(&fz, way, false) == 0);
    CHECK(freeze_reach(&fz, place + PAGE_SIZE, 2 * HUGE_PAGES - 1) == most);
    CHECK(freeze_reach(&fz, place + PAGE_SIZE, 5) == 5);
    freezer_destroy(&fz);
    os_unmap((void *)place, bytes_of(2 * HUGE_PAGES));
}

/* The page that lends a shadow its identity, too, which otherwise would hand the rights on. */
static void a_shadow_forbids_nothing(void)
{
    struct freezer fz;
    uintptr_t range = new_range();
    REQUIRE(range && freezer_init(&fz, way, false) == 0 && freezer_attach(&fz, range, N) == 0);
    forbidden = range;
    uintptr_t shadow = freezer_shadow(&fz, range, N, 0);
    bool lent = !forbidden;
    forbidden = 0;
    CHECK(lent == (way == KSMPY_FREEZE_UFFD_MOVE || way == KSMPY_FREEZE_UFFD_REMAP));
    CHECK(!shadow || !lent || os_populate(shadow, 1, true) == 0);
    CHECK(os_populate(range, 1, true) == 0 && filled((const uint8_t *)range, N, 1));
    if (shadow)
        os_unmap((void *)shadow, bytes_of(N + 1));
    give_back(&fz, range);
}

/* ---- the identity of a mapping that is in pieces ---- */

enum { PIECES = 2048 };

/* A mapping of so many pieces of a page, each with other flags than the next, and a free page below. */
static uintptr_t new_pieces(struct freezer *fz)
{
    uintptr_t below =
        (uintptr_t)mmap(NULL, bytes_of(PIECES + 2), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uintptr_t pieces = below + bytes_of(2);
    if ((void *)below == MAP_FAILED || os_commit((void *)pieces, bytes_of(PIECES)) < 0 ||
        os_populate(pieces, PIECES, true) < 0 || freezer_attach(fz, pieces, PIECES) < 0)
        return 0;
    for (uint64_t i = 1; i < PIECES; i += 2)
        madvise(page_at(pieces, i), PAGE_SIZE, MADV_DONTDUMP);
    munmap(page_at(below, 1), PAGE_SIZE);
    return pieces;
}

/* Does a last page that was an overlay become one mapping with all the others by a shadow? */
static bool joins(struct freezer *fz, uintptr_t shadow, uintptr_t start, uintptr_t end)
{
    struct os_maps maps;
    struct os_vma vma = {0};
    uintptr_t last = end - PAGE_SIZE;
    int memfd = os_memfd("frames", PAGE_SIZE);
    know(fz, memfd);
    bool back = shadow && os_write(memfd, 0, (void *)last, 1) == 1 &&
                os_map_frames(last, 1, memfd, 0) == 0 &&
                freezer_unoverlay(fz, last, 1, shadow, KSMPY_VMA_DONTDUMP, false) == 0;
    close(memfd);
    freezer_detach(fz, start, (end - start) >> PAGE_SHIFT);
    madvise((void *)start, end - start, MADV_DODUMP);
    if (os_maps_open(&maps) == 0) {
        os_maps_find(&maps, start, &vma);
        os_maps_close(&maps);
    }
    return back && vma.start <= start && vma.end >= end;
}

static uintptr_t shadow_of(struct freezer *fz, uintptr_t pieces, uint64_t i)
{
    return freezer_shadow(fz, pieces + bytes_of(i), 1, i % 2 ? KSMPY_VMA_DONTDUMP : 0);
}

static void give_pieces_back(struct freezer *fz, uintptr_t pieces)
{
    freezer_destroy(fz);
    munmap(page_at(pieces, -(uint64_t)2), PAGE_SIZE);
    munmap((void *)pieces, bytes_of(PIECES));
}

/* Of how many pieces whatever: each shadow is found from the one before. */
static void a_shadow_finds_the_start_of_what_is_in_pieces(void)
{
    struct freezer fz;
    uintptr_t pieces = freezer_init(&fz, way, false) == 0 ? new_pieces(&fz) : 0, shadow = 0;
    REQUIRE(pieces);
    for (uint64_t i = 0; i < PIECES; i++) {
        os_unmap((void *)shadow, bytes_of(2));
        shadow = shadow_of(&fz, pieces, i);
    }
    CHECK(joins(&fz, shadow, pieces, pieces + bytes_of(PIECES)));
    give_pieces_back(&fz, pieces);
}

static _Atomic bool gave_back;

static void *give_a_part_back(void *range)
{
    bool done =
        madvise(page_at((uintptr_t)range, FIRST), bytes_of(END - FIRST), MADV_DONTNEED) == 0;
    atomic_store(&gave_back, true);
    return done ? range : NULL;
}

/* What does not become zeros goes back, but not what its owner has given back meanwhile. */
static void what_is_given_back_while_it_is_frozen_for_zeros_is_gone(void)
{
    struct freezer fz;
    pthread_t owner;
    const uint8_t *view;
    void *done = NULL;
    int64_t got = 0;
    uintptr_t range = new_range();
    REQUIRE(range && freezer_init(&fz, way, false) == 0 && freezer_attach(&fz, range, N) == 0);
    for (int tries = 0; got != N && tries < 1000; tries++) {
        if (got > 0) {
            freeze_restore(&fz, 0, (uint64_t)got);
            thaw(&fz);
        }
        got = freeze_for_zeros(&fz, range, N, &view);
    }
    REQUIRE(got == N);
    gave_back = false;
    REQUIRE(pthread_create(&owner, NULL, give_a_part_back, (void *)range) == 0);
    for (int i = 0; i < 1000 && !atomic_load(&gave_back); i++)
        os_sleep_us(50);
    freeze_restore(&fz, 0, N);
    thaw(&fz);
    pthread_join(owner, &done);
    static const uint8_t zeros[(END - FIRST) * PAGE_SIZE];
    CHECK(done && memcmp(page_at(range, FIRST), zeros, sizeof zeros) == 0);
    CHECK(filled((const uint8_t *)range, FIRST, 1));
    CHECK(filled(page_at(range, END), N - END, 1 + END));
    give_back(&fz, range);
}

/* Its owner unmapped it while it was frozen, and somebody else got the place. */
static void what_others_map_there_stays(void)
{
    struct freezer fz;
    const uint8_t *view;
    uintptr_t range;
    int memfd;
    REQUIRE(begin(&fz, &range, &memfd));
    REQUIRE(freeze_all(&fz, range, &view));
    REQUIRE(os_map_anonymous(range, N, 0) == 0);
    fill((uint8_t *)range, N, 500);
    CHECK(freeze_overlay(&fz, 0, N, memfd, 0) == -ECANCELED);
    CHECK(freeze_zero(&fz, 0, N, 0) == -ECANCELED);
    freeze_restore(&fz, 0, N);
    thaw(&fz);
    CHECK(filled((const uint8_t *)range, N, 500));
    end(&fz, range, memfd);
}

/* Writes are tracked if the kernel can do that, as other ways are taken then to ask what the memory is. */
static bool begin_at_best(struct freezer *fz, uintptr_t *range)
{
    *range = new_range();
    return *range && (freezer_init(fz, way, true) == 0 || freezer_init(fz, way, false) == 0) &&
           freezer_attach(fz, *range, N) == 0;
}

/* Its owner has mapped something else there since it was registered: that is not touched. */
static void what_is_registered_no_more_is_not_frozen(void)
{
    struct freezer fz;
    const uint8_t *view;
    uintptr_t range;
    REQUIRE(begin_at_best(&fz, &range));
    REQUIRE(freeze_all(&fz, range, &view));
    freeze_restore(&fz, 0, N);
    thaw(&fz);
    REQUIRE(os_map_anonymous(range + bytes_of(FIRST), END - FIRST, 0) == 0);
    memset(page_at(range, FIRST), 1, bytes_of(END - FIRST));
    int64_t got = freeze(&fz, range, N, &view);
    CHECK(got > 0 && got <= FIRST);
    freeze_restore(&fz, 0, (uint64_t)got);
    thaw(&fz);
    got = freeze(&fz, range + bytes_of(FIRST), 1, &view);
    CHECK(got < 0);
    if (got > 0)
        thaw(&fz);
    give_back(&fz, range);
}

/* As libeatmydata's. */
int __wrap_msync(void *address, size_t bytes, int flags)
{
    (void)address, (void)bytes, (void)flags;
    return 0;
}

/* Memory that is locked is to stay there: of its zeros none are given up. */
static void locked_zeros_stay(void)
{
    struct freezer fz;
    const uint8_t *view;
    uintptr_t range;
    unsigned char there[N];
    REQUIRE(begin_at_best(&fz, &range));
    memset((void *)range, 0, bytes_of(N));
    if (mlock2(page_at(range, FIRST), bytes_of(END - FIRST), 0) < 0)
        SKIP("no memory may be locked here");
    CHECK(freeze_for_zeros(&fz, range, FIRST, &view) == FIRST);
    CHECK(freeze_zero(&fz, 0, FIRST, 0) == 0);
    thaw(&fz);
    CHECK(freeze_for_zeros(&fz, range + bytes_of(FIRST), END - FIRST, &view) == END - FIRST);
    CHECK(freeze_zero(&fz, 0, END - FIRST, 0) == -EINVAL);
    freeze_restore(&fz, 0, END - FIRST);
    thaw(&fz);
    REQUIRE(mincore((void *)range, bytes_of(N), there) == 0);
    for (int i = 0; i < END; i++)
        CHECK((there[i] & 1) == (i >= FIRST));
    give_back(&fz, range);
}

#define MANY 512

/*
 * First of pages that were never touched, which have no page table; then of pages that are there and
 * that are not, in a pattern of more ranges than one answer has.  Where nothing is nothing can be
 * protected but by a marker, which some userfaultfds set.
 */
static void protected_pages_are_told_of(int features, bool marks)
{
    bool unprotected[MANY], right = true;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), uffd = os_uffd_open(features);
    uintptr_t range = (uintptr_t)os_alloc_in_step(bytes_of(MANY), 0);
    if (uffd < 0)
        SKIP("no such userfaultfd here");
    REQUIRE(fd >= 0 && range && os_uffd_register(uffd, range, MANY, OS_UFFD_WP) == 0);
    os_set_vma_flags(range, MANY, KSMPY_VMA_NOHUGEPAGE);
    memset(unprotected, false, sizeof unprotected);
    CHECK(os_unprotected(fd, range, MANY, unprotected) == 0 && !memchr(unprotected, 0, MANY));
    for (uint64_t i = 0; i < MANY; i++) {
        if (i % 3)
            *(volatile uint8_t *)page_at(range, i) = 1;
        if (i % 2)
            REQUIRE(os_uffd_protect(uffd, range + bytes_of(i), 1, true) == 0);
    }
    CHECK(os_unprotected(fd, range, MANY, unprotected) == 0);
    for (uint64_t i = 0; i < MANY; i++)
        right &= unprotected[i] == (i % 2 == 0 || (i % 3 == 0 && !marks));
    CHECK(right);
    os_unmap((void *)range, bytes_of(MANY));
    close(uffd);
    close(fd);
}

static void protected_pages_are_told(void)
{
    protected_pages_are_told_of(OS_UFFD_WP_SYNC, false);
    protected_pages_are_told_of(OS_UFFD_WP_ASYNC, true);
}

/* Kernels before 6.7 have no PAGEMAP_SCAN, like this file in the place of a pagemap. */
static void protected_pages_are_told_by_old_kernels(void)
{
    bool unprotected[MANY], right = true;
    uint64_t words[MANY];
    int fd = os_memfd("pagemap", 0);
    REQUIRE(fd >= 0);
    for (uint64_t i = 0; i < MANY; i++)
        words[i] = i % 5 ? UINT64_MAX : ~((uint64_t)1 << 57);
    REQUIRE(pwrite(fd, words, sizeof words, sizeof words) == sizeof words);
    CHECK(os_unprotected(fd, bytes_of(MANY), MANY, unprotected) == 0);
    for (uint64_t i = 0; i < MANY; i++)
        right &= unprotected[i] == (i % 5 == 0);
    CHECK(right);
    close(fd);
}

/* Is it in a mapping that the kernel's own KSM may share? */
static bool is_mergeable(uintptr_t address)
{
    char line[512];
    uintptr_t start, end;
    bool here = false, mergeable = false;
    FILE *smaps = fopen("/proc/self/smaps", "r");
    while (smaps && fgets(line, sizeof line, smaps)) {
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
            here = address >= start && address < end;
        if (here && strncmp(line, "VmFlags:", 8) == 0)
            mergeable = strstr(line, " mg") != NULL;
    }
    if (smaps)
        fclose(smaps);
    return mergeable;
}

/* It would put other pages there, which nothing protects. */
static void ksm_is_kept_away_from_what_is_protected(void)
{
    struct freezer fz;
    const uint8_t *view;
    uintptr_t range = new_range();
    REQUIRE(range && freezer_init(&fz, way, false) == 0 && freezer_attach(&fz, range, N) == 0);
    bool here = madvise((void *)range, bytes_of(N), MADV_MERGEABLE) == 0 && is_mergeable(range);
    REQUIRE(freeze_all(&fz, range, &view));
    CHECK(!is_mergeable(range) && !is_mergeable(range + bytes_of(N - 1)));
    freeze_restore(&fz, 0, N);
    thaw(&fz);
    CHECK(filled((const uint8_t *)range, N, 1));
    give_back(&fz, range);
    if (!here)
        SKIP("this kernel has no KSM");
}

static _Atomic bool held, has_read; /* the fault thread, with a message that it has read */

int __real_os_uffd_read(int fd, uintptr_t *start, uintptr_t *end);
int __wrap_os_uffd_read(int fd, uintptr_t *start, uintptr_t *end)
{
    int event = __real_os_uffd_read(fd, start, end);
    if (event == OS_UFFD_FAULT && atomic_load(&held)) {
        atomic_store(&has_read, true);
        while (atomic_load(&held))
            os_sleep_us(100);
    }
    return event;
}

static void *touch(void *page)
{
    return (void *)(uintptr_t)(1 + *(volatile uint8_t *)page);
}

static void fault_and_be_held(pthread_t *thread, uintptr_t page)
{
    atomic_store(&has_read, false);
    atomic_store(&held, true);
    REQUIRE(pthread_create(thread, NULL, touch, (void *)page) == 0);
    while (!atomic_load(&has_read))
        os_sleep_us(100);
}

/*
 * The fault thread has read that a page is missing, and comes to it when that page lies on a frame
 * that no page table knows.
 */
static void a_fault_from_before_a_thaw_fills_nothing(void)
{
    struct freezer fz;
    const uint8_t *view;
    pthread_t thread;
    uintptr_t range = new_range(), other = new_range();
    int memfd = os_memfd("frames", bytes_of(N));
    REQUIRE(range && other && memfd >= 0 && freezer_init(&fz, way, false) == 0);
    know(&fz, memfd);
    fz.removals.dev = 0; /* nobody knows its mappings for overlays */
    REQUIRE(freezer_attach(&fz, range, N) == 0 && freezer_attach(&fz, other, N) == 0);
    REQUIRE(os_write(memfd, 0, (void *)range, N) == N);
    REQUIRE(os_drop(range, 1) == 0 && os_drop(other, 1) == 0);
    fault_and_be_held(&thread, range);
    REQUIRE(freeze_all(&fz, range, &view));
    CHECK(freeze_overlay(&fz, 0, N, memfd, 0) == 0);
    thaw(&fz);
    pthread_join(thread, NULL);
    REQUIRE(os_drop(range, N) == 0); /* out of the page tables */
    atomic_store(&held, false);
    CHECK(*(volatile uint8_t *)other == 0); /* the fault thread has come to the next message */
    CHECK(filled((const uint8_t *)range, N, 1));
    os_unmap((void *)(other - PAGE_SIZE), bytes_of(N + 2));
    end(&fz, range, memfd);
}

/* The kernel asks for some of its memory only after it has unmapped the target. */
static void a_move_that_fails_halfway_is_made_good(void)
{
    for (int times = 1; times <= 2; times++) { /* the second time where the gap is to be filled */
        struct freezer fz;
        uintptr_t range;
        int memfd;
        REQUIRE(begin(&fz, &range, &memfd));
        know(&fz, memfd);
        REQUIRE(os_map_frames(range, N, memfd, 0) == 0);
        refuse(range, times);
        freezer_unoverlay(&fz, range, N, 0, 0, false);
        CHECK(!refused);
        CHECK(os_is_mapped(range) && os_is_mapped(range + bytes_of(N - 1)));
        CHECK(filled((const uint8_t *)range, N, 1));
        end(&fz, range, memfd);
    }
}

static bool is_mapping_of(int memfd, uintptr_t address)
{
    struct os_maps maps;
    struct os_vma vma;
    uint64_t inode = 0, dev = 0;
    os_identify(memfd, &inode, &dev);
    bool found = os_maps_open(&maps) == 0 && os_maps_find(&maps, address, &vma) > 0;
    os_maps_close(&maps);
    return found && vma.start <= address && os_vma_shows(&vma, inode, dev);
}

static bool has_page(struct freezer *fz, uintptr_t address)
{
    uint8_t kind;
    return os_pages(fz->pagemap_fd, address, 1, &kind) == 0 && kind != OS_PAGE_NONE;
}

/* A range is frozen, and the frames of its first n pages were made ready before. */
static bool freeze_with_ready(struct freezer *fz, uintptr_t *range, int *memfd, uint64_t n)
{
    const uint8_t *view;
    if (!begin(fz, range, memfd))
        return false;
    know(fz, *memfd);
    return ready_make(fz, *range, n, *memfd, 0) && freeze_all(fz, *range, &view);
}

static void thaw_with_ready(struct freezer *fz)
{
    thaw(fz);
    ready_end(fz);
}

/* Some of the frames that were made ready are used, and others not. */
static void what_is_ready_is_moved_there(void)
{
    struct freezer fz;
    uintptr_t range;
    int memfd;
    REQUIRE(freeze_with_ready(&fz, &range, &memfd, N));
    uintptr_t elsewhere = fz.ready + range % bytes_of(FREEZE_HUGE);
    CHECK(is_mapping_of(memfd, elsewhere));
    CHECK(freeze_overlay(&fz, 0, FIRST, memfd, 0) == 0);
    CHECK(has_page(&fz, range) && has_page(&fz, range + bytes_of(FIRST - 1)));
    freeze_restore(&fz, FIRST, END - FIRST);
    CHECK(freeze_overlay(&fz, END, N - END, memfd, bytes_of(END)) == 0);
    thaw_with_ready(&fz);
    CHECK(is_mapping_of(memfd, range) && is_mapping_of(memfd, range + bytes_of(N - 1)));
    CHECK(!is_mapping_of(memfd, range + bytes_of(FIRST)));
    for (uint64_t i = 0; i < N; i++)
        CHECK(!is_mapping_of(memfd, elsewhere + bytes_of(i)));
    CHECK(filled((const uint8_t *)range, N, 1));
    end(&fz, range, memfd);
}

/* Of other pages' frames, and for other pages, nothing is ready. */
static void what_is_ready_for_others_is_not_used(void)
{
    struct freezer fz;
    uintptr_t range;
    int memfd;
    REQUIRE(freeze_with_ready(&fz, &range, &memfd, FIRST));
    CHECK(freeze_overlay(&fz, 0, 1, memfd, bytes_of(1)) == 0);
    freeze_restore(&fz, 1, FIRST - 1);
    CHECK(freeze_overlay(&fz, FIRST, N - FIRST, memfd, bytes_of(FIRST)) == 0);
    thaw_with_ready(&fz);
    CHECK(filled((const uint8_t *)range, 1, 2));
    CHECK(filled(page_at(range, 1), N - 1, 2));
    end(&fz, range, memfd);
}

/* mremap() would fail where its target is gone already. */
static void nothing_is_made_ready_where_memory_is_limited(void)
{
    struct freezer fz;
    struct rlimit before, limited;
    uintptr_t range;
    int memfd;
    REQUIRE(begin(&fz, &range, &memfd) && getrlimit(RLIMIT_DATA, &before) == 0);
    limited = before;
    limited.rlim_cur = (rlim_t)1 << 46;
    REQUIRE(setrlimit(RLIMIT_DATA, &limited) == 0);
    CHECK(!ready_make(&fz, range, N, memfd, 0));
    setrlimit(RLIMIT_DATA, &before);
    end(&fz, range, memfd);
}

/* As by a filter of system calls. */
static void what_may_not_be_moved_is_mapped(void)
{
    struct freezer fz;
    uintptr_t range;
    int memfd;
    REQUIRE(freeze_with_ready(&fz, &range, &memfd, N));
    filtered = true;
    CHECK(freeze_overlay(&fz, 0, N, memfd, 0) == 0);
    filtered = false;
    thaw_with_ready(&fz);
    CHECK(is_mapping_of(memfd, range) && filled((const uint8_t *)range, N, 1));
    end(&fz, range, memfd);
}

static void a_gap_where_frames_were_to_be_moved_is_filled(void)
{
    struct freezer fz;
    uintptr_t range;
    int memfd;
    REQUIRE(freeze_with_ready(&fz, &range, &memfd, N));
    refuse(range, 1);
    int error = freeze_overlay(&fz, 0, N, memfd, 0);
    CHECK(!refused);
    thaw_with_ready(&fz);
    if (error == -EEXIST) {
        freezer_destroy(&fz);
        close(memfd);
        SKIP("another thread has got the gap: a sanitizer maps memory of its own");
    }
    CHECK(!error && os_is_mapped(range) && os_is_mapped(range + bytes_of(N - 1)));
    CHECK(filled((const uint8_t *)range, N, 1));
    end(&fz, range, memfd);
}

/* The program lowers its limit right before the call, which has taken away what was there by then. */
static void a_gap_is_filled_where_nothing_can_be_mapped(void)
{
    struct freezer fz;
    uintptr_t range;
    int memfd;
    REQUIRE(freeze_with_ready(&fz, &range, &memfd, N));
    limited = range;
    CHECK(freeze_overlay(&fz, 0, FIRST, memfd, 0) == 0);
    CHECK(!limited && !fz.ready);
    CHECK(freeze_overlay(&fz, FIRST, N - FIRST, memfd, bytes_of(FIRST)) == 0);
    thaw_with_ready(&fz);
    CHECK(is_mapping_of(memfd, range) && is_mapping_of(memfd, range + bytes_of(N - 1)));
    CHECK(filled((const uint8_t *)range, N, 1));
    end(&fz, range, memfd);
}

/* The same where overlays come back, once from the shadow and once from the stage. */
static void overlays_come_back_where_nothing_can_be_mapped(void)
{
    for (int lends = 0; lends < 2; lends++) {
        struct freezer fz;
        uintptr_t range;
        int memfd;
        REQUIRE(begin(&fz, &range, &memfd));
        uintptr_t shadow = lends ? freezer_shadow(&fz, range, N, 0) : 0, stage = fz.stage;
        for (int again = 0; again < 2; again++) {
            REQUIRE(os_map_frames(range, N, memfd, 0) == 0);
            REQUIRE(freezer_track_overlay(&fz, range, N) == 0);
            limited = again ? 0 : range;
            CHECK(freezer_unoverlay(&fz, range, N, again ? 0 : shadow, 0, false) == 0);
            CHECK(!limited && fz.moved_for_good == !again);
            CHECK(lends || again || fz.stage != stage + bytes_of(N));
            CHECK(!is_mapping_of(memfd, range) && filled((const uint8_t *)range, N, 1));
        }
        end(&fz, range, memfd);
    }
}

/* And frozen pages, which leave a hole in the window. */
static void frozen_pages_come_back_where_nothing_can_be_mapped(void)
{
    struct freezer fz;
    const uint8_t *view;
    uintptr_t range;
    int memfd;
    REQUIRE(begin(&fz, &range, &memfd) && freeze_all(&fz, range, &view));
    limited = range;
    freeze_restore(&fz, 0, N);
    thaw(&fz);
    CHECK(!limited && !fz.windows[0] && filled((const uint8_t *)range, N, 1));
    REQUIRE(freeze_all(&fz, range, &view));
    freeze_restore(&fz, 0, N);
    thaw(&fz);
    CHECK(filled((const uint8_t *)range, N, 1));
    end(&fz, range, memfd);
}

/* And where a page of the region's was away, to lend its identity. */
static void a_page_that_was_lent_comes_back_where_nothing_can_be_mapped(void)
{
    struct freezer fz;
    uintptr_t range;
    int memfd;
    REQUIRE(begin(&fz, &range, &memfd));
    limited = range;
    CHECK(!freezer_shadow(&fz, range, N, 0) && !limited);
    CHECK(filled((const uint8_t *)range, N, 1));
    end(&fz, range, memfd);
}

/* A thread whose stack was given to it, and is registered: it never waits for itself. */
static void freeze_own_stack(uintptr_t stack)
{
    struct freezer fz;
    const uint8_t *view;
    uintptr_t here = (uintptr_t)__builtin_frame_address(0) / PAGE_SIZE * PAGE_SIZE;
    uintptr_t data = (uintptr_t)pthread_self() / PAGE_SIZE * PAGE_SIZE;
    REQUIRE(freezer_init(&fz, way, false) == 0 && freezer_attach(&fz, stack, STACK_PAGES) == 0);
    CHECK(freeze(&fz, here, 1, &view) == -EBUSY && freeze(&fz, data, 1, &view) == -EBUSY);
    CHECK(freezer_unoverlay(&fz, here, 1, 0, 0, false) == -EBUSY);
    freezer_detach(&fz, stack, STACK_PAGES);
    freezer_destroy(&fz);
}

static void *on_given_stack(void *stack)
{
    freeze_own_stack((uintptr_t)stack);
    return stack;
}

static void own_stack_is_never_frozen(void)
{
    pthread_attr_t attributes;
    pthread_t thread;
    void *result = NULL, *stack = os_alloc(bytes_of(STACK_PAGES));
    pthread_attr_init(&attributes);
    REQUIRE(stack && pthread_attr_setstack(&attributes, stack, bytes_of(STACK_PAGES)) == 0);
    REQUIRE(pthread_create(&thread, &attributes, on_given_stack, stack) == 0);
    pthread_join(thread, &result);
    CHECK(result == stack);
    pthread_attr_destroy(&attributes);
    os_unmap(stack, bytes_of(STACK_PAGES));
}

#ifdef __GLIBC__
static int between[2];

static void *wait_there(void *nothing)
{
    char byte;
    CHECK(write(between[1], "", 1) == 1 && read(between[1], &byte, 1) == 1);
    return nothing;
}

/* Who unmerges puts up with calls that fail, and not with the end of the process. */
static void a_waiting_thread_s_data_does_not_come_back(void)
{
    struct freezer fz;
    pthread_attr_t attributes;
    pthread_t thread;
    char byte;
    uint8_t *stack = os_alloc(bytes_of(STACK_PAGES));
    REQUIRE(stack && pthread_attr_init(&attributes) == 0);
    REQUIRE(pthread_attr_setstack(&attributes, stack, bytes_of(STACK_PAGES)) == 0);
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, between) == 0);
    REQUIRE(pthread_create(&thread, &attributes, wait_there, NULL) == 0);
    REQUIRE(freezer_init(&fz, way, false) == 0);
    CHECK(read(between[0], &byte, 1) == 1);
    uintptr_t data = (uintptr_t)thread / PAGE_SIZE * PAGE_SIZE;
    CHECK(freezer_unoverlay(&fz, data, 1, 0, 0, true) == -EBUSY);
    CHECK(write(between[0], "", 1) == 1);
    pthread_join(thread, NULL);
    freezer_destroy(&fz);
    pthread_attr_destroy(&attributes);
    os_unmap(stack, bytes_of(STACK_PAGES));
    close(between[0]);
    close(between[1]);
}
#endif

static bool is_own(const void *address)
{
    struct ksmpy_range own[64];
    int64_t count = ksmpy_own_memory(own, 64);
    for (int64_t i = 0; i < count && i < 64; i++)
        if ((uintptr_t)address >= own[i].start && (uintptr_t)address < own[i].end)
            return true;
    return false;
}

/* What is mapped for an engine is told, to the page, as long as it is there; its threads' stacks too. */
static void own_memory_is_told(void)
{
    uint8_t *memory = os_reserve(bytes_of(8));
    REQUIRE(memory && is_own(memory) && is_own(page_at((uintptr_t)memory, 7)));
    os_unmap(page_at((uintptr_t)memory, 3), bytes_of(2));
    CHECK(is_own(page_at((uintptr_t)memory, 2)) && is_own(page_at((uintptr_t)memory, 5)));
    CHECK(!is_own(page_at((uintptr_t)memory, 3)) && !is_own(page_at((uintptr_t)memory, 4)));
    os_unmap(memory, bytes_of(3));
    os_unmap(page_at((uintptr_t)memory, 5), bytes_of(3));
    CHECK(!is_own(memory) && !is_own(page_at((uintptr_t)memory, 7)));
    CHECK(is_own(&way) && !is_own(&memory));
    struct freezer fz;
    uintptr_t range = new_range();
    REQUIRE(range && freezer_init(&fz, way, false) == 0 && freezer_attach(&fz, range, N) == 0);
    uintptr_t stacks[] = {fz.helper.stack, fz.removals.helper.stack};
    CHECK(is_own((void *)fz.stage) && is_own(fz.zeros));
    CHECK(!fz.helper.runs || (stacks[0] && is_own((void *)stacks[0])));
    CHECK(fz.removals.helper.runs == (way != KSMPY_FREEZE_SIGNAL));
    CHECK(!fz.removals.helper.runs || (stacks[1] && is_own((void *)stacks[1])));
    give_back(&fz, range);
    CHECK(!stacks[0] || !is_own((void *)stacks[0]));
    CHECK(!stacks[1] || !is_own((void *)stacks[1]));
}

int main(void)
{
    for (way = KSMPY_FREEZE_UFFD_MOVE; way <= KSMPY_FREEZE_UFFD_WP; way++) {
        struct freezer fz;
        bool here = freezer_init(&fz, way, false) == 0;
        printf("freeze %d%s\n", way, here ? "" : ": not here");
        if (!here)
            continue;
        freezer_destroy(&fz);
        RUN(a_freeze_ends_where_it_holds_somebody_up);
        RUN(a_move_that_fails_halfway_is_made_good);
        RUN(no_handler_is_called_while_something_is_frozen);
        if (way == KSMPY_FREEZE_SIGNAL)
            RUN(a_handler_that_blocks_all_signals_waits);
        if (way != KSMPY_FREEZE_SIGNAL) /* which has nobody to ask */
            RUN(what_others_map_there_stays);
        if (way != KSMPY_FREEZE_SIGNAL)
            RUN(what_is_being_given_back_is_not_frozen);
        RUN(what_is_protected_stays_protected);
        RUN(what_is_mapped_is_the_store);
        RUN(frozen_pages_come_back_without_descriptors);
        RUN(what_is_allowed_stays_allowed);
        RUN(a_shadow_forbids_nothing);
        if (way == KSMPY_FREEZE_SIGNAL || way == KSMPY_FREEZE_UFFD_WP)
            RUN(a_shadow_finds_the_start_of_what_is_in_pieces);
        RUN(what_is_given_back_while_it_is_frozen_for_zeros_is_gone);
        if (way == KSMPY_FREEZE_UFFD_WP)
            RUN(ksm_is_kept_away_from_what_is_protected);
        if (way == KSMPY_FREEZE_UFFD_WP) {
            RUN(what_is_registered_no_more_is_not_frozen);
            RUN(locked_zeros_stay);
            RUN(protected_pages_are_told);
            RUN(protected_pages_are_told_by_old_kernels);
        }
        if (way == KSMPY_FREEZE_UFFD_MOVE || way == KSMPY_FREEZE_UFFD_REMAP)
            RUN(a_fault_from_before_a_thaw_fills_nothing);
        if (!os_is_rationed()) {
            RUN(overlays_come_back_where_nothing_can_be_mapped);
            if (way == KSMPY_FREEZE_UFFD_REMAP)
                RUN(frozen_pages_come_back_where_nothing_can_be_mapped);
            if (way == KSMPY_FREEZE_UFFD_MOVE || way == KSMPY_FREEZE_UFFD_REMAP)
                RUN(a_page_that_was_lent_comes_back_where_nothing_can_be_mapped);
        }
        /* In overlays of the mode `signal` the kernel maps pages around a fault. */
        if (way != KSMPY_FREEZE_SIGNAL && !os_is_rationed()) {
            RUN(nothing_is_made_ready_where_memory_is_limited);
            RUN(what_is_ready_is_moved_there);
            RUN(what_is_ready_for_others_is_not_used);
            RUN(what_may_not_be_moved_is_mapped);
            RUN(a_gap_where_frames_were_to_be_moved_is_filled);
            RUN(a_gap_is_filled_where_nothing_can_be_mapped);
        }
        RUN(own_stack_is_never_frozen);
#ifdef __GLIBC__
        if (way == KSMPY_FREEZE_SIGNAL) /* where the kernel does not wait, whoever the user is */
            RUN(a_waiting_thread_s_data_does_not_come_back);
#endif
        RUN(own_memory_is_told);
        for (change = 0; change < CHANGES; change++) {
            RUN(frozen_pages_come_back);
            RUN(overlays_come_back);
        }
    }
    return finish();
}
