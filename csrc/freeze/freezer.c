#include "freeze/freezer.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/pages.h"
#include "freeze/borrow.h"
#include "freeze/bystanders.h"
#include "freeze/descriptors.h"
#include "freeze/freezes.h"
#include "freeze/moving.h"
#include "freeze/ops.h"
#include "freeze/owner.h"
#include "freeze/ready.h"
#include "freeze/registration.h"
#include "freeze/removal_thread.h"
#include "freeze/signal.h"
#include "freeze/signal_stacks.h"
#include "freeze/stage.h"
#include "freeze/uffd_away.h"
#include "freeze/uffd_wp.h"
#include "ksmpy.h"
#include "os/calls.h"
#include "os/direct_io.h"
#include "os/files.h"
#include "os/map.h"
#include "os/pagemap.h"
#include "os/proc_maps.h"
#include "os/tasks.h"
#include "os/thread_data.h"
#include "os/uffd.h"

/*
 * How many bytes of this thread's stack, below and above the stack frame of needed_here(), are
 * taken to be in use while something is frozen.  Less would risk that the thread waits for itself;
 * more leaves more memory unmerged if a stack lies in a region, which is rare.
 */
#define STACK_BELOW ((uintptr_t)128 << 10)
#define STACK_ABOVE ((uintptr_t)64 << 10)

static const struct freezer_ops *const ways[] = {
    [KSMPY_FREEZE_UFFD_MOVE] = &freeze_by_moving,
    [KSMPY_FREEZE_UFFD_REMAP] = &freeze_by_remapping,
    [KSMPY_FREEZE_SIGNAL] = &freeze_by_signal,
    [KSMPY_FREEZE_UFFD_WP] = &freeze_by_protection,
};

static void unmap_all(struct freezer *fz)
{
    os_unmap((void *)fz->windows[0], bytes_of(FREEZE_MAX));
    os_unmap((void *)fz->windows[1], bytes_of(FREEZE_HUGE));
    os_unmap((void *)fz->trash, bytes_of(FREEZE_HUGE));
    os_unmap((void *)fz->ready, bytes_of(FREEZE_HUGE));
    stage_close(fz);
    borrow_close(fz);
    os_unmap(fz->zeros, PAGE_SIZE);
}

int freezer_init(struct freezer *fz, int mode, bool tracked)
{
    memset(fz, 0, sizeof *fz);
    freezer_forget_files(fz);
    fz->slot = -1;
    fz->mode = mode;
    fz->ops = ways[mode];
    fz->tracked = tracked;
    pthread_mutex_init(&fz->lock, NULL);
    bystanders_open(&fz->bystanders, mode == KSMPY_FREEZE_SIGNAL || !os_uffd_handles_calls());
    if (fz->bystanders.matter)
        signal_stacks_note_own();
    signal_note_guests();
    fz->stage = (uintptr_t)os_alloc(bytes_of(FREEZE_MAX));
    fz->zeros = os_alloc(PAGE_SIZE);
    fz->pagemap_fd = os_keep_off_standard(open("/proc/thread-self/pagemap", O_RDONLY | O_CLOEXEC));
    fz->tasks_fd = os_tasks_open();
    int error = fz->pagemap_fd < 0         ? fz->pagemap_fd
                : fz->tasks_fd < 0         ? fz->tasks_fd
                : !fz->stage || !fz->zeros ? -ENOMEM
                                           : 0;
    if (!error)
        error = fz->ops->init(fz);
    int no_maps = os_maps_open(&fz->removals.maps);
    if (!error && fz->ops->registration)
        error = no_maps ? no_maps : removals_open(fz);
    freezer_know_files(fz);
    if (!error && fz->ops->start)
        error = fz->ops->start(fz);
    if (error)
        freezer_destroy(fz);
    return error;
}

void freezer_destroy(struct freezer *fz)
{
    bystanders_close(&fz->bystanders);
    removals_stop(fz);
    if (fz->ops->stop)
        fz->ops->stop(fz);
    freezer_close_files(fz);
    unmap_all(fz);
    pthread_mutex_destroy(&fz->lock);
}

/*
 * The inherited userfaultfds act on the parent's address space, so they are closed.  The windows
 * of uffd-move are not mapped in a child (MADV_DONTFORK); those of uffd-remap are, and stay unused.
 * fork() copied the locks in whatever state they were, so they are made anew.
 */
void freezer_abandon(struct freezer *fz)
{
    uint64_t inode = fz->removals.inode, dev = fz->removals.dev;
    if (fz->bystanders.matter)
        signal_stacks_note_own(); /* the thread has another number here */
    fz->ops->abandon(fz);
    fz->helper.runs = false;
    freezer_close_files(fz);
    freezer_know_store(fz, inode, dev);
    fz->removals.overflown = true; /* the parent's notes are gone: the mappings tell instead */
    fz->windows[0] = fz->windows[1] = 0;
    memset(fz->kept, 0, sizeof fz->kept);
    fz->bystanders = (struct bystanders){0};
    pthread_mutex_init(&fz->lock, NULL);
}

/*
 * Memory that its owner has protected is not frozen: the overlay in its place would be readable and
 * writable, and so would lift the protection.
 */
static int64_t freeze_range(struct freezer *fz, uintptr_t address, uint64_t n, const uint8_t **view)
{
    if (!owner_may_write(fz, address, n))
        return n > 1 ? -ENOENT : -EPERM;
    fz->start = address;
    fz->end = address + bytes_of(n);
    memset(fz->mapped, false, n);
    int64_t got = fz->ops->freeze(fz, address, n, view);
    if (got <= 0)
        fz->ops->thaw(fz, address, n);
    return got;
}

/*
 * No way of freezing takes a range that crosses from one mapping into another.
 * On an error that may mean this, a shorter range is tried.
 */
static int64_t freeze_some(struct freezer *fz, uintptr_t address, uint64_t n, const uint8_t **view)
{
    for (;;) {
        int64_t got = freeze_range(fz, address, n, view);
        if (got > 0)
            return got;
        bool shorter = got == -EFAULT || got == -EINVAL || got == -ENOENT || n > FREEZE_MAX;
        if (n == 1 || !shorter)
            return got;
        n = n > FREEZE_MAX ? FREEZE_MAX : n / 2;
    }
}

/*
 * A handler of the program's that wrote to a frozen page would wait for the thaw, in the very thread
 * that is to thaw.  So none is called there in between, except for a fault of this thread's own.
 */
static void call_no_handlers(sigset_t *before)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS};
    sigset_t others;
    sigfillset(&others);
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++)
        sigdelset(&others, faults[i]);
    pthread_sigmask(SIG_BLOCK, &others, before);
}

static void hold(struct freezer *fz)
{
    sigset_t before;
    call_no_handlers(&before);
    pthread_mutex_lock(&fz->lock);
    fz->signals = before;
    freezes_begin();
    removals_hold(fz);
    fz->to_zeros = fz->in_place = false;
}

static void let_go(struct freezer *fz)
{
    sigset_t before = fz->signals;
    removals_let_go(fz);
    freezes_end();
    pthread_mutex_unlock(&fz->lock);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/*
 * Does this thread itself need these pages, as its stack or its thread-local data?  If they were
 * frozen it would wait for itself.  Registration leaves stacks out, but a thread can be given any
 * memory as its stack, that of a region too (pthread_attr_setstack).
 */
static bool needed_here(uintptr_t address, uint64_t n)
{
    uintptr_t frame = (uintptr_t)__builtin_frame_address(0), self = (uintptr_t)pthread_self();
    uintptr_t top = self > frame ? least(frame + STACK_ABOVE, self) : frame + STACK_ABOVE;
    uintptr_t end = address + bytes_of(n);
    return meet(address, end, frame - STACK_BELOW, top) || os_own_data_meets(address, end) ||
           meet(address, end, (uintptr_t)&errno, (uintptr_t)(&errno + 1));
}

uint64_t freeze_reach(const struct freezer *fz, uintptr_t address, uint64_t n)
{
    n = least(n, pages_to_huge(address));
    bool together =
        fz->ops->holds_up_writers_only || (n == HUGE_PAGES && os_is_huge(fz->pagemap_fd, address));
    return together ? n : least(n, FREEZE_MAX);
}

/* How many leading pages the kernel does not need as the stack of a thread's signals. */
static uint64_t before_stacks(const struct freezer *fz, uintptr_t address, uint64_t n)
{
    uint64_t before = fz->bystanders.matter ? signal_stacks_before(address, n) : n;
    return before < n ? least(before, FREEZE_MAX) : n;
}

/* The descriptor by which the other threads are looked at; -1: the program has closed it. */
static int own_tasks(const struct freezer *fz)
{
    return freezer_has(fz, fz->tasks_fd) ? fz->tasks_fd : -1;
}

/*
 * Where a call that fails is put up with: the kernel ends the process if it cannot write to a
 * thread's own data.
 */
static bool ends_threads(const struct freezer *fz, uintptr_t address, uint64_t n)
{
    return fz->bystanders.matter && os_is_thread_data(own_tasks(fz), address, n);
}

static int64_t freeze_held(struct freezer *fz, uintptr_t address, uint64_t n, bool to_zeros,
                           const uint8_t **view)
{
    hold(fz);
    fz->to_zeros = to_zeros;
    if (is_being_given_back(fz, address, n) || before_stacks(fz, address, n) < n ||
        moving_meets(address, n))
        return -EAGAIN;
    return freeze_some(fz, address, n, view);
}

/*
 * After any fork, and for ever, a page that existed then is "shared" in the
 * kernel's eyes and cannot be moved (EBUSY).  Breaking copy-on-write makes it
 * exclusive again; that must happen unlocked, as it may fault.  Of what was a
 * huge page before the fork only the first page is asked (seen on Linux 6.18),
 * which may not be among ours: so such pages are parted.
 */
static int64_t freeze_beside_none(struct freezer *fz, uintptr_t address, uint64_t n, bool to_zeros,
                                  const uint8_t **view)
{
    int64_t got = freeze_held(fz, address, n, to_zeros, view);
    if (got == -EBUSY && fz->ops->refuses_pinned) {
        let_go(fz);
        n = least(n, FREEZE_MAX);
        os_populate(address, n, true);
        os_split(address, n);
        got = freeze_held(fz, address, n, to_zeros, view);
    }
    if (got <= 0) {
        let_go(fz);
        return got ? got : -EAGAIN;
    }
    if (!fz->ops->refuses_pinned && os_direct_io(fz->tasks_fd, address, (uint64_t)got)) {
        freeze_restore(fz, 0, (uint64_t)got);
        thaw(fz);
        return -EBUSY;
    }
    return got;
}

static int64_t freeze_now(struct freezer *fz, uintptr_t address, uint64_t n, bool to_zeros,
                          const uint8_t **view)
{
    n = freeze_reach(fz, address, n);
    if (needed_here(address, n))
        return -EBUSY;
    n = before_stacks(fz, address, n);
    if (!n)
        return -EBUSY;
    if (!bystanders_hold(&fz->bystanders, own_tasks(fz), address, n))
        return FREEZE_LATER;
    int64_t got = freeze_beside_none(fz, address, n, to_zeros, view);
    if (got <= 0)
        bystanders_let_go(&fz->bystanders);
    return got;
}

int64_t freeze(struct freezer *fz, uintptr_t address, uint64_t n, const uint8_t **view)
{
    return freeze_now(fz, address, n, false, view);
}

int64_t freeze_for_zeros(struct freezer *fz, uintptr_t address, uint64_t n, const uint8_t **view)
{
    return freeze_now(fz, address, n, true, view);
}

void freeze_restore(struct freezer *fz, uint64_t first, uint64_t n)
{
    fz->ops->restore(fz, fz->start, first, n);
}

int freeze_overlay(struct freezer *fz, uint64_t first, uint64_t n, int memfd, uint64_t offset)
{
    uintptr_t address = fz->start + bytes_of(first);
    if (!os_is_file(memfd, fz->removals.inode))
        return -EBADF;
    if (!owner_kept(fz, address, n))
        return -ECANCELED; /* its owner unmapped it, and others may have got the place */
    int error = ready_move(fz, address, n, memfd, offset);
    if (error == -ENOENT)
        error = os_map_frames(address, n, memfd, offset);
    if (error)
        return error;
    memset(fz->mapped + first, true, n);
    freezer_watch_overlay(fz, address, n);
    return 0;
}

int freeze_zero(struct freezer *fz, uint64_t first, uint64_t n, int vma_flags)
{
    uintptr_t address = fz->start + bytes_of(first);
    if (!owner_kept(fz, address, n))
        return -ECANCELED;
    return fz->ops->zero(fz, address, n, vma_flags);
}

void thaw(struct freezer *fz)
{
    fz->ops->thaw(fz, fz->start, (fz->end - fz->start) >> PAGE_SHIFT);
    let_go(fz);
    bystanders_let_go(&fz->bystanders);
}

uintptr_t freezer_shadow(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags)
{
    if (!fz->ops->shadow || os_is_rationed() || !os_can_map(n + 2))
        return 0;
    hold(fz);
    uintptr_t shadow = moving_meets(address, n) ? 0 : fz->ops->shadow(fz, address, n, vma_flags);
    let_go(fz);
    return shadow;
}

int freezer_unoverlay(struct freezer *fz, uintptr_t address, uint64_t n, uintptr_t blank,
                      int vma_flags, bool insists)
{
    if (needed_here(address, n))
        return -EBUSY;
    if (insists)
        bystanders_hold_if_can(&fz->bystanders, own_tasks(fz), address, n);
    else if (!bystanders_hold(&fz->bystanders, own_tasks(fz), address, n))
        return -EBUSY;
    hold(fz);
    fz->moved_for_good = false;
    bool there = fz->removals.gate_fd < 0 || is_all_overlay(fz, address, n);
    int error = -ESTALE;
    bool busy = moving_meets(address, n) ||
                (insists ? ends_threads(fz, address, n) : before_stacks(fz, address, n) < n);
    if (there && busy)
        error = -EBUSY;
    else if (there)
        error = fz->ops->unoverlay(fz, address, n, blank, vma_flags);
    let_go(fz);
    bystanders_let_go(&fz->bystanders);
    return error;
}

bool freezer_comes_back_huge(const struct freezer *fz, uintptr_t address, uintptr_t blank,
                             int vma_flags)
{
    size_t size = bytes_of(FREEZE_HUGE);
    return fz->removals.gate_fd >= 0 && blank && address % size == 0 && blank % size == 0 &&
           os_gives_huge_pages(vma_flags);
}
