/*
 * The thread that answers madvise(), see removal_thread.h.
 *
 * It waits for one lock only, quiet, whose holder waits for nobody that could be in madvise().  It
 * must not wait for the freezer's lock: a fork holds that while it waits for malloc's locks, and a
 * thread in madvise() may hold one of those.  A tracer that stops this thread delays the threads in
 * madvise() until it lets it go on.
 *
 * The kernel sends a message before the thread in madvise() sleeps, and /proc shows the call only
 * once it sleeps.  So after each look at the threads only the oldest message is read: its thread
 * was in madvise() before the look.
 */
#include "freeze/removal_thread.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/pages.h"
#include "freeze/descriptors.h"
#include "freeze/helper.h"
#include "freeze/home.h"
#include "freeze/moving.h"
#include "freeze/ops.h"
#include "freeze/protection.h"
#include "freeze/removal_state.h"
#include "os/arena.h"
#include "os/clock.h"
#include "os/files.h"
#include "os/given_back.h"
#include "os/map.h"
#include "os/pagemap.h"
#include "os/proc_maps.h"
#include "os/tasks.h"
#include "os/uffd.h"

/*
 * How long, in ns, a thread whose message was read is expected to take its pages away, if
 * /proc does not show it elsewhere before.  Nothing in its range is frozen meanwhile.
 */
#define LEAVING_NS ((uint64_t)1000000000)
/*
 * How often this thread looks, 20 us apart, for the thread that sent a message, before it reads the
 * message all the same (50 ms and more): madvise() takes that much longer at worst.
 */
#define LOOKS 2500
/* After so many of these looks a thread that was about to sleep when its message came sleeps. */
#define SETTLED 5
/* How often, 20 us apart, the scanner lets this thread take the lock first: 1 ms at least. */
#define TURNS 50
/* How often a page is faulted in, before it is taken for a copy that was swapped out. */
#define FAULTS 4

int removals_open(struct freezer *fz)
{
    struct removals *removals = &fz->removals;
    int track = fz->tracked ? OS_UFFD_WP_ASYNC : OS_UFFD_WP_SYNC;
    removals->overlay_fd = os_uffd_open(track | OS_UFFD_TELL_REMOVE);
    if (removals->overlay_fd < 0)
        return removals->overlay_fd;
    int block = OS_UFFD_WP_SYNC | fz->ops->features;
    removals->gate_fd = os_uffd_open(block | OS_UFFD_TELL_REMOVE);
    if (removals->gate_fd < 0)
        return removals->gate_fd;
    removals->tasks_fd = os_tasks_open();
    if (removals->tasks_fd < 0)
        return removals->tasks_fd;
    int error = arena_init(&removals->seen, sizeof(struct os_removal), REMOVAL_THREADS);
    if (!error)
        error = arena_init(&removals->prepared, sizeof(struct os_removal), REMOVAL_THREADS);
    if (error)
        return error;
    removals->stop_fd = os_keep_off_standard(eventfd(0, EFD_CLOEXEC));
    return removals->stop_fd < 0 ? removals->stop_fd : 0;
}

void freezer_know_store(struct freezer *fz, uint64_t inode, uint64_t dev)
{
    fz->removals.inode = inode;
    fz->removals.dev = dev;
    moving_know_store(inode, dev);
}

/* ---- for the scanner ---- */

/*
 * A mutex is not handed to the one who has waited longest.  A scanner that takes it again and again
 * would keep the removal thread out, and with it the threads in madvise(): so it waits its turn.
 */
void removals_hold(struct freezer *fz)
{
    for (int i = 0; i < TURNS && atomic_load(&fz->removals.wanted); i++)
        os_sleep_us(20);
    pthread_mutex_lock(&fz->removals.quiet);
}

void removals_let_go(struct freezer *fz)
{
    pthread_mutex_unlock(&fz->removals.quiet);
}

bool freezer_removed(struct freezer *fz, struct removed *removed)
{
    pthread_mutex_lock(&fz->removals.quiet);
    bool found = fz->removals.notes_n > 0;
    if (found)
        *removed = fz->removals.notes[--fz->removals.notes_n];
    pthread_mutex_unlock(&fz->removals.quiet);
    return found;
}

bool freezer_removed_more(struct freezer *fz)
{
    pthread_mutex_lock(&fz->removals.quiet);
    bool more = fz->removals.overflown;
    fz->removals.overflown = false;
    pthread_mutex_unlock(&fz->removals.quiet);
    return more;
}

bool is_being_given_back(struct freezer *fz, uintptr_t address, uint64_t n)
{
    struct removals *removals = &fz->removals;
    bool found = false;
    for (int i = removals->leavers_n - 1; i >= 0; i--) {
        const struct leaver *leaver = &removals->leavers[i];
        if (address >= leaver->end || leaver->start >= address + bytes_of(n))
            continue;
        if (os_now_ns() < leaver->until && os_may_remove(fz->tasks_fd, &leaver->call))
            found = true;
        else
            removals->leavers[i] = removals->leavers[--removals->leavers_n];
    }
    return found;
}

static bool is_overlay(const struct removals *removals, const struct os_vma *vma)
{
    return vma->private_rw && os_vma_shows(vma, removals->inode, removals->dev);
}

bool is_all_overlay(struct freezer *fz, uintptr_t address, uint64_t n)
{
    struct removals *removals = &fz->removals;
    uintptr_t end = address + bytes_of(n);
    struct os_vma vma;
    os_maps_refresh(&removals->maps);
    while (address < end && os_maps_find(&removals->maps, address, &vma) > 0 &&
           vma.start <= address && is_overlay(removals, &vma))
        address = vma.end;
    return address >= end;
}

/* ---- overlays that go ---- */

static void note(struct removals *removals, struct removed removed)
{
    struct removed *last = removals->notes_n ? &removals->notes[removals->notes_n - 1] : NULL;
    bool follows = last && last->end == removed.start &&
                   last->offset + (last->end - last->start) == removed.offset;
    if (follows)
        last->end = removed.end;
    else if (removals->notes_n < REMOVAL_NOTES)
        removals->notes[removals->notes_n++] = removed;
    else
        removals->overflown = true;
}

/* Puts fresh anonymous memory in an overlay's place, registered like other pages of the region. */
static bool replace(struct freezer *fz, struct removed removed)
{
    uint64_t n = (removed.end - removed.start) >> PAGE_SHIFT;
    if (os_map_anonymous(removed.start, n, 0) < 0)
        return false;
    freezer_register(fz, removed.start, n);
    note(&fz->removals, removed);
    return true;
}

static bool shows_frame(uint8_t kind)
{
    return kind == OS_PAGE_NONE || kind == OS_PAGE_FILE;
}

/* Returns overlays from the gate to the userfaultfd of overlays, unchanged. */
static void leave(struct freezer *fz, uintptr_t address, uint64_t n)
{
    freezer_leave_overlays(fz, address, n);
    os_uffd_register(fz->removals.overlay_fd, address, n, OS_UFFD_WP);
}

/*
 * What is behind at most FREEZE_MAX overlay pages whose writers wait; false: nobody can tell.
 *
 * A page that is not present may have a marker of write protection in its place, which looks like a
 * swapped-out copy to ordinary users: after a fault it looks like what it is.  Its owner, who has
 * been let go on, may take the page away again between the fault and the look, but only once.
 */
static bool look_behind(const struct freezer *fz, uintptr_t address, uint64_t n, uint8_t *kinds)
{
    for (int i = 0; i < FAULTS; i++) {
        os_populate(address, n, false);
        if (os_pages(fz->pagemap_fd, address, n, kinds) < 0)
            return false;
        if (!memchr(kinds, OS_PAGE_UNTOLD, n))
            break;
    }
    return true;
}

/*
 * Replaces those pages that still show their frames, of at most FREEZE_MAX, while their writers
 * wait.  A page that was written to has its owner's new bytes and stays.
 */
static void replace_what_shows_frames(struct freezer *fz, struct removed removed)
{
    uint8_t kinds[FREEZE_MAX] = {0};
    uint64_t n = (removed.end - removed.start) >> PAGE_SHIFT;
    bool known = look_behind(fz, removed.start, n, kinds);
    for (uint64_t i = 0, length; i < n; i += length) {
        bool shows = shows_frame(kinds[i]);
        for (length = 1; i + length < n && shows_frame(kinds[i + length]) == shows;)
            length++;
        uintptr_t start = removed.start + bytes_of(i);
        struct removed part = {start, start + bytes_of(length), removed.offset + bytes_of(i)};
        if (!known || !shows || !replace(fz, part))
            leave(fz, start, length);
    }
}

/*
 * Replaces overlays whose owner was already let go on and may have written to them.  Nobody may
 * write between the look at the pages and their replacement, or that write would be lost: so the
 * overlays belong to the gate meanwhile, where writers wait.
 */
static void replace_late(struct freezer *fz, struct removed removed)
{
    for (uint64_t n; removed.start < removed.end; removed.start += bytes_of(n)) {
        n = least((removed.end - removed.start) >> PAGE_SHIFT, FREEZE_MAX);
        if (freezer_take_overlays(fz, removed.start, n) == 0)
            replace_what_shows_frames(
                fz, (struct removed){removed.start, removed.start + bytes_of(n), removed.offset});
        else
            leave(fz, removed.start, n);
        os_uffd_wake(fz->removals.gate_fd, removed.start, n);
        removed.offset += bytes_of(n);
    }
}

/*
 * Will madvise() go on behind this mapping?  At one of another kind it may fail, and leave the
 * memory behind it as it is: what lies there must not be replaced.
 */
static bool goes_on(const struct removals *removals, const struct os_vma *vma)
{
    return is_overlay(removals, vma) || (!vma->inode && !vma->shared);
}

/*
 * Does the overlay belong to a userfaultfd of this freezer's?  It may be that of another engine of this
 * process on the same store.  Who gives it back waits for that one, and may have been let go on since
 * the look at the mappings: what it has written would be replaced.  Memory of another userfaultfd, and
 * no other, cannot be registered (EBUSY).
 */
static bool is_ours(struct freezer *fz, uintptr_t start, uintptr_t end)
{
    const int fds[] = {fz->removals.overlay_fd, fz->removals.gate_fd, freezer_home(fz)};
    if (!os_uffd_is_of_any(fz->wp_fd, start))
        return false;
    for (size_t i = 0; i < sizeof fds / sizeof fds[0]; i++)
        if (os_uffd_register(fds[i], start, (end - start) >> PAGE_SHIFT, OS_UFFD_WP) != -EBUSY)
            return true;
    return false;
}

static int replace_overlays(struct freezer *fz, uintptr_t start, uintptr_t end, bool late)
{
    struct removals *removals = &fz->removals;
    struct os_vma vma;
    int count = 0;
    os_maps_refresh(&removals->maps);
    while (start < end && os_maps_find(&removals->maps, start, &vma) > 0 && vma.start < end &&
           goes_on(removals, &vma)) {
        uintptr_t from = vma.start > start ? vma.start : start;
        struct removed removed = {from, vma.end < end ? vma.end : end,
                                  vma.offset + (from - vma.start)};
        start = vma.end;
        if (!is_overlay(removals, &vma) || !is_ours(fz, removed.start, removed.end))
            continue;
        if (late)
            replace_late(fz, removed);
        else
            replace(fz, removed);
        if (!count++ && os_has_locked_memory(removals->tasks_fd))
            break; /* madvise() fails at locked memory, which may come next: see goes_on() */
    }
    return count;
}

/* ---- the messages ---- */

/* Notes that a thread is about to take pages away; if there are too many, forgets the oldest. */
static void expect_leaver(struct removals *removals, struct leaver leaver)
{
    if (removals->leavers_n == REMOVAL_LEAVERS) {
        memmove(removals->leavers, removals->leavers + 1,
                (REMOVAL_LEAVERS - 1) * sizeof removals->leavers[0]);
        removals->leavers_n--;
    }
    leaver.until = os_now_ns() + LEAVING_NS;
    removals->leavers[removals->leavers_n++] = leaver;
}

/*
 * The message is read, so its thread goes on.  If no thread was seen in such a call (io_uring and
 * process_madvise() show none), its overlays are still there, and are replaced now.
 */
static void let_go_on(struct freezer *fz, uintptr_t start, uintptr_t end)
{
    struct removals *removals = &fz->removals;
    struct os_removal call = {0};
    for (int i = 0; i < removals->prepared_n; i++) {
        const struct os_removal *prepared = arena_at(&removals->prepared, i);
        if (prepared->start <= start && end <= prepared->end)
            call = *prepared;
    }
    expect_leaver(removals, (struct leaver){.start = start, .end = end, .call = call});
    if (!call.thread)
        replace_overlays(fz, start, end, true);
}

/*
 * Wakes a thread that faulted on a page of the gate: nothing is frozen now, as the lock is held.  A
 * page that could not be given back to its home after a freeze still belongs to the gate.  If it is
 * missing there nobody else would bring it, so it gets the zero page.
 */
static void answer_fault(struct freezer *fz, int fd, uintptr_t page)
{
    /* EEXIST may mean a marker that write protection left; UFFDIO_COPY replaces a marker. */
    if (!is_all_overlay(fz, page, 1) && os_uffd_zero(fd, page, 1) == -EEXIST)
        os_uffd_copy(fd, page, fz->zeros, 1);
    os_uffd_wake(fd, page, 1);
}

static void read_one(struct freezer *fz, int fd)
{
    uintptr_t start, end;
    int event;
    while ((event = os_uffd_read(fd, &start, &end)) == OS_UFFD_FAULT)
        answer_fault(fz, fd, start);
    if (event == OS_UFFD_REMOVE)
        let_go_on(fz, start, end);
}

static bool was_prepared(const struct removals *removals, const struct os_removal *call)
{
    for (int i = 0; i < removals->prepared_n; i++) {
        const struct os_removal *before = arena_at(&removals->prepared, i);
        if (before->thread == call->thread && before->start == call->start &&
            before->end == call->end)
            return true;
    }
    return false;
}

/* The calls in which threads are seen, into seen: how many, or -errno. */
static int look_at_threads(struct removals *removals, bool *running)
{
    for (;;) {
        struct arena *seen = &removals->seen;
        int n = os_removals(removals->tasks_fd, arena_at(seen, 0), (int)seen->committed, running);
        if (n < 0 || (uint64_t)n <= seen->committed)
            return n;
        if (seen->committed == seen->limit)
            return -E2BIG;
        int error = arena_grow(seen, least(2 * (uint64_t)n, seen->limit));
        error = error ? error : arena_grow(&removals->prepared, seen->committed);
        if (error)
            return error;
    }
}

/*
 * Replaces the overlays that the threads seen in madvise() are about to give back.  true: the
 * sender of the oldest message was, as far as can be told, among these threads.
 */
static bool prepare(struct freezer *fz, bool *running)
{
    struct removals *removals = &fz->removals;
    int n = look_at_threads(removals, running);
    if (n < 0) {
        *running = true; /* the next look may tell more */
        return false;
    }
    bool seen = false;
    for (int i = 0; i < n; i++) {
        const struct os_removal *call = arena_at(&removals->seen, i);
        seen |= replace_overlays(fz, call->start, call->end, false) > 0;
        seen |= was_prepared(removals, call);
    }
    struct arena before = removals->prepared;
    removals->prepared = removals->seen;
    removals->seen = before;
    removals->prepared_n = n;
    return seen || (n && !*running);
}

static bool has_message(int fd)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    return poll(&wait, 1, 0) > 0 && wait.revents & POLLIN;
}

/*
 * Answers the oldest message of a descriptor.  A thread that has sent its message and does not
 * sleep yet is shown as running.  With several threads in madvise() the oldest message may be of
 * such a one while another is seen to sleep: hence the SETTLED looks before it is read.
 */
static void serve(struct freezer *fz, int fd)
{
    bool running = true, seen = false;
    for (int looks = 0; running && !seen && looks < LOOKS; looks++) {
        if (looks)
            os_sleep_us(20);
        atomic_store(&fz->removals.wanted, true);
        pthread_mutex_lock(&fz->removals.quiet);
        atomic_store(&fz->removals.wanted, false);
        bool message = freezer_has(fz, fd) && has_message(fd);
        seen = !message || (prepare(fz, &running) && looks >= SETTLED);
        if (message && (seen || !running || looks == LOOKS - 1))
            read_one(fz, fd);
        pthread_mutex_unlock(&fz->removals.quiet);
    }
}

static void *removal_thread(void *argument)
{
    struct freezer *fz = argument;
    const struct removals *removals = &fz->removals;
    struct pollfd wait[3] = {{.fd = removals->stop_fd, .events = POLLIN},
                             {.fd = removals->overlay_fd, .events = POLLIN},
                             {.fd = removals->gate_fd, .events = POLLIN}};
    for (;;) {
        if (poll(wait, 3, -1) < 0)
            continue;
        if (wait[0].revents || !freezer_has(fz, removals->overlay_fd) ||
            !freezer_has(fz, removals->gate_fd))
            return NULL;
        for (int i = 1; i < 3; i++)
            if (wait[i].revents)
                serve(fz, wait[i].fd);
    }
}

int removals_start(struct freezer *fz)
{
    if (fz->removals.gate_fd < 0 || fz->removals.helper.runs)
        return 0;
    return helper_start(&fz->removals.helper, removal_thread, fz);
}

void removals_stop(struct freezer *fz)
{
    helper_end(&fz->removals.helper, fz->removals.stop_fd, freezer_has(fz, fz->removals.stop_fd));
}
