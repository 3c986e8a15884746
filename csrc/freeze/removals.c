/*
 * The thread that answers madvise(), see removals.h.
 *
 * It waits for one lock only, quiet, whose holder waits for nobody that could be in madvise().  Not
 * for the freezer's lock: fork() takes that, and then malloc's, which a thread in madvise() may
 * hold.  A tracer that stops the thread delays who is in madvise(), until it lets it go on.
 *
 * One message is read for each look at the threads: the oldest, of a thread that was in madvise()
 * before the look.
 */
#include "freeze/removals.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/pages.h"
#include "freeze/descriptors.h"
#include "freeze/helper.h"
#include "freeze/home.h"
#include "freeze/ops.h"
#include "freeze/removed.h"
#include "freeze/replace.h"
#include "os/clock.h"
#include "os/direct_io.h"
#include "os/map.h"
#include "os/maps.h"
#include "os/pagemap.h"
#include "os/uffd.h"

#define LEAVING_NS ((uint64_t)1000000000)
#define LOOKS 2500 /* 20 us apart, for a thread that is about to wait */
#define SETTLED 5  /* of them: who was about to wait when its message was there does so by then */
#define TURNS 50   /* the same, for the thread to get its turn */

int removals_open(struct freezer *fz)
{
    struct removals *removals = &fz->removals;
    bool kernel_mode;
    int track = fz->tracked ? OS_UFFD_WP_ASYNC : OS_UFFD_WP_SYNC;
    removals->overlay_fd = os_uffd_open(track | OS_UFFD_TELL_REMOVE, &kernel_mode);
    if (removals->overlay_fd < 0)
        return removals->overlay_fd;
    int block = OS_UFFD_WP_SYNC | fz->ops->features;
    removals->gate_fd = os_uffd_open(block | OS_UFFD_TELL_REMOVE, &kernel_mode);
    if (removals->gate_fd < 0)
        return removals->gate_fd;
    removals->tasks_fd = os_tasks_open();
    if (removals->tasks_fd < 0)
        return removals->tasks_fd;
    removals->stop_fd = eventfd(0, EFD_CLOEXEC);
    return removals->stop_fd < 0 ? -errno : 0;
}

void freezer_know_store(struct freezer *fz, uint64_t inode, uint64_t dev)
{
    fz->removals.inode = inode;
    fz->removals.dev = dev;
}

/* ---- for the scanner ---- */

/* A lock is not handed over: who takes it again and again would keep the thread from it. */
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

/* As memory of the region's own. */
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

/* They stay overlays, of which we are told again. */
static void leave(struct freezer *fz, uintptr_t address, uint64_t n)
{
    freezer_leave_overlays(fz, address, n);
    os_uffd_register(fz->removals.overlay_fd, address, n, OS_UFFD_WP);
}

/* At most FREEZE_MAX pages, whose writers wait: what shows a frame, and not what was written to. */
static void replace_what_shows_frames(struct freezer *fz, struct removed removed)
{
    uint8_t kinds[FREEZE_MAX] = {0};
    uint64_t n = (removed.end - removed.start) >> PAGE_SHIFT;
    os_populate(removed.start, n, false); /* a marker looks like a swapped copy to ordinary users */
    bool known = os_pages(fz->pagemap_fd, removed.start, n, kinds) == 0;
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
 * The thread goes on already, and may have written.  Nobody may write between the look and the
 * replacing, so the overlays belong to the gate meanwhile.
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
 * Where madvise() would fail, it does so at the first mapping that is not like these, and leaves
 * what follows as it is.
 */
static bool goes_on(const struct removals *removals, const struct os_vma *vma)
{
    return is_overlay(removals, vma) || (!vma->inode && !vma->shared);
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
        if (!is_overlay(removals, &vma))
            continue;
        if (late)
            replace_late(fz, removed);
        else
            replace(fz, removed);
        if (!count++ && os_has_locked_memory(removals->tasks_fd))
            break; /* which madvise() may come upon next, and fail */
    }
    return count;
}

/* ---- the messages ---- */

/* The oldest makes room. */
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

/* Of a call that was not seen the overlays are replaced right after it was let go on. */
static void let_go_on(struct freezer *fz, uintptr_t start, uintptr_t end)
{
    struct removals *removals = &fz->removals;
    struct os_removal call = {0};
    for (int i = 0; i < removals->prepared_n; i++)
        if (removals->prepared[i].start <= start && end <= removals->prepared[i].end)
            call = removals->prepared[i];
    expect_leaver(removals, (struct leaver){.start = start, .end = end, .call = call});
    if (!call.thread)
        replace_overlays(fz, start, end, true);
}

/*
 * What waits for the end of a freeze waits no more: nothing is frozen.  What could not be given back
 * to its home then is missing here for ever, unless it gets the zero page.
 */
static void answer_fault(struct freezer *fz, int fd, uintptr_t page)
{
    /* EEXIST may be a marker that write protection left; a copy replaces it. */
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

static bool was_prepared(const struct os_removal *before, int n, const struct os_removal *call)
{
    for (int i = 0; i < n; i++)
        if (before[i].thread == call->thread && before[i].start == call->start &&
            before[i].end == call->end)
            return true;
    return false;
}

/* Replaces what is about to be given back; true: it has seen somebody who waits for that. */
static bool prepare(struct freezer *fz, bool *running)
{
    struct removals *removals = &fz->removals;
    struct os_removal calls[REMOVAL_THREADS];
    int n = os_removals(removals->tasks_fd, calls, REMOVAL_THREADS, running);
    bool seen = false;
    for (int i = 0; i < n; i++) {
        seen |= replace_overlays(fz, calls[i].start, calls[i].end, false) > 0;
        seen |= was_prepared(removals->prepared, removals->prepared_n, &calls[i]);
    }
    memcpy(removals->prepared, calls, (size_t)n * sizeof calls[0]);
    removals->prepared_n = n;
    return seen || (n && !*running);
}

static bool has_message(int fd)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    return poll(&wait, 1, 0) > 0 && wait.revents & POLLIN;
}

/*
 * Who is about to wait in madvise() still runs, and is not seen.  With several of them the oldest
 * message may be such a one's while another is seen to wait: so it is given time.
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
        bool message = has_message(fd);
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
