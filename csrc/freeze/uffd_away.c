/*
 * Freezing with userfaultfd, by taking pages away.
 *
 * Regions are registered for missing pages.  To freeze is to take the pages
 * away: a thread that touches one finds it missing and sleeps until thaw()
 * wakes it, and then repeats its access.  All of it is decided by the kernel;
 * what is missing although nobody froze it is freeze/fault_thread.c's.
 */
#include "freeze/uffd_away.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/pages.h"
#include "freeze/fault_thread.h"
#include "freeze/gate.h"
#include "freeze/home.h"
#include "freeze/ops.h"
#include "freeze/owner.h"
#include "freeze/protection.h"
#include "freeze/shadow.h"
#include "freeze/stage.h"
#include "os/clock.h"
#include "os/files.h"
#include "os/map.h"
#include "os/pagemap.h"
#include "os/uffd.h"

/*
 * How often a call that was refused for a moment is repeated before the slower way is taken: at
 * once at first, then 50 us apart.  Threads that need the pages wait meanwhile.
 */
#define RETRIES 64
#define RETRIES_AT_ONCE 8

static bool moves(const struct freezer *fz)
{
    return fz->ops->features & OS_UFFD_MOVE;
}

static int open_uffds(struct freezer *fz)
{
    int tracks = fz->tracked ? OS_UFFD_WP_ASYNC : 0;
    fz->uffd = os_uffd_open(tracks | fz->ops->features);
    if (fz->uffd < 0)
        return fz->uffd;
    fz->wp_fd = os_uffd_open(OS_UFFD_WP_SYNC | fz->ops->features);
    if (fz->wp_fd < 0)
        return fz->wp_fd;
    fz->stop_fd = os_keep_off_standard(eventfd(0, EFD_CLOEXEC));
    return fz->stop_fd < 0 ? fz->stop_fd : 0;
}

/*
 * The window of uffd-move is registered memory of our own.  It is kept from
 * children (MADV_DONTFORK), since a fork would make its pages "shared", which
 * UFFDIO_MOVE refuses.  The window of uffd-remap becomes a piece of a region
 * when it is moved back, and so must not be kept from children.
 */
static int open_window(struct freezer *fz, uint64_t n)
{
    uintptr_t at = (uintptr_t)(n == FREEZE_HUGE ? os_alloc_huge() : os_alloc(bytes_of(n)));
    if (!at)
        return -ENOMEM;
    int error = 0;
    if (moves(fz)) {
        error = os_dont_fork((void *)at, bytes_of(n));
        if (!error)
            error = os_uffd_register(fz->uffd, at, n, OS_UFFD_MISSING);
    }
    if (error)
        os_unmap((void *)at, bytes_of(n));
    else
        fz->windows[n == FREEZE_HUGE] = at;
    return error;
}

static int uffd_init(struct freezer *fz)
{
    int error = open_uffds(fz);
    stage_open(fz); /* if it fails, the stage that does not slide stays, and costs mappings */
    return error ? error : open_window(fz, FREEZE_MAX);
}

/* ---- freezing ---- */

/*
 * A failed mremap may have unmapped its target, the window, which is then
 * claimed back.  If that fails, either the window is still mapped or another
 * thread has mapped something there, and nobody can tell which: so the address
 * is forgotten, and a new window is made for the next freeze.
 */
static void reclaim_window(struct freezer *fz, uint64_t n)
{
    if (os_claim(*fz->window, n) || os_commit((void *)*fz->window, bytes_of(n)))
        *fz->window = 0;
}

/*
 * Chooses the window and empties it, since whatever lies in it will be taken for the owner's pages.
 * It may not be empty: mlockall() may have filled it, or kept it full at the last thaw; and when
 * another process reads our memory (a debugger) the fault thread puts zero pages there.  It cannot
 * do so now, as it would need the freezer's lock.
 */
static int need_window(struct freezer *fz, uint64_t n)
{
    bool huge = n > FREEZE_MAX;
    fz->window = &fz->windows[huge];
    int error = *fz->window ? 0 : open_window(fz, huge ? FREEZE_HUGE : FREEZE_MAX);
    return error ? error : os_drop(*fz->window, n);
}

/*
 * Where the program has closed the descriptor that tells, what is in memory is no hole.  What went to
 * swap meanwhile would be taken for one.
 */
static int find_holes(struct freezer *fz, uint64_t n)
{
    uint8_t kinds[FREEZE_HUGE];
    int error = os_pages(fz->pagemap_fd, *fz->window, n, kinds);
    bool told = os_is_known(fz->pagemap_fd);
    for (uint64_t i = 0; i < n; i++)
        fz->hole[i] =
            told ? error || kinds[i] == OS_PAGE_NONE : !os_is_there(*fz->window + bytes_of(i));
    return told ? error : 0;
}

static void put_frozen(struct freezer *fz, uintptr_t address, uint64_t first, uint64_t n);

/*
 * A mapping that is moved takes its rights along.  Its owner had protected these pages just before
 * they were moved away, and may give their place other rights before they are back.  So they are
 * copied back, which leaves the place with the rights that it has by then.
 */
static int return_protected(struct freezer *fz, uintptr_t address, uint64_t n)
{
    os_protect(*fz->window, n, true);
    put_frozen(fz, address, 0, n);
    return -EPERM;
}

/* MADV_POPULATE_WRITE fails with EINVAL on memory that may not be written. */
static bool is_protected(uintptr_t page)
{
    return os_populate(page, 1, true) == -EINVAL;
}

static int64_t freeze_by_remap(struct freezer *fz, uintptr_t address, uint64_t n)
{
    if (!os_can_map(n))
        return -ENOMEM;
    int error = os_remap(*fz->window, address, n, true);
    if (error) {
        reclaim_window(fz, n);
        return error;
    }
    find_holes(fz, n);
    return is_protected(*fz->window) ? return_protected(fz, address, n) : (int64_t)n;
}

/*
 * How many pages were moved.  The kernel's answer can be too small: Linux 6.18
 * was seen to move pages and to say EAGAIN, or how many it had moved before
 * those.  The window was empty before, so what lies in it was moved, and is the
 * owner's only copy, which must not be dropped.
 */
static int64_t truly_moved(struct freezer *fz, uint64_t n, int64_t answer)
{
    while (find_holes(fz, n) < 0)
        os_sleep_us(50);
    for (uint64_t end = n; end; end--)
        if (!fz->hole[end - 1])
            return (int64_t)end;
    return answer < 0 ? answer : -EAGAIN;
}

static int64_t freeze_by_move(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int64_t got = 0;
    for (int i = 0; i < RETRIES; i++) {
        memset(fz->hole, 0, n * sizeof fz->hole[0]);
        got = os_uffd_move(fz->uffd, *fz->window, address, n);
        if (got < (int64_t)n)
            got = truly_moved(fz, n, got);
        if (got != -EAGAIN)
            break;
        if (i >= RETRIES_AT_ONCE) /* the thread that holds the page seems to have been preempted */
            os_sleep_us(50);
    }
    return got;
}

/*
 * Is the range registered for missing pages?  Only there does a thread wait for
 * pages that were taken away, while the kernel takes them away anywhere.
 * UFFDIO_ZEROPAGE tells for one page: it fills a hole only in registered
 * memory, and says EEXIST if there is no hole.  A longer range has to lie in one
 * mapping.  UFFDIO_MOVE and mremap would refuse it otherwise, but before mremap
 * does so some kernels (6.1) unmap the window, others (6.18) do not, and a
 * window in doubt has to be given up: hence the question is asked before.
 */
static int check_registered(struct freezer *fz, uintptr_t address, uint64_t n)
{
    if (n > 1)
        return os_uffd_is_registered(fz->wp_fd, address, n) ? 0 : -ENOENT;
    int64_t filled = os_uffd_zero(fz->wp_fd, address, 1);
    if (filled > 0 || filled == -EEXIST)
        return 0;
    return filled == -EAGAIN ? -EAGAIN : -EPERM;
}

/*
 * Pages that are to become zeros are not moved, only protected: memory that mremap has moved would
 * be a mapping of its own for ever.
 */
static int64_t freeze_in_place(struct freezer *fz, uintptr_t address, uint64_t n,
                               const uint8_t **view)
{
    fz->window = NULL;
    int error = check_registered(fz, address, n);
    if (!error)
        error = gate_take(fz, address, n, OS_UFFD_WP);
    if (!error)
        error = freezer_block_in_place(fz, address, n);
    *view = (const uint8_t *)address;
    return error ? error : (int64_t)n;
}

static int take_pages_of_others(struct freezer *fz, uintptr_t address, uint64_t n)
{
    return os_uffd_register(gate_of(fz), address, n, OS_UFFD_MISSING);
}

/*
 * The pages that were taken away may be somebody else's, who has mapped memory there since the
 * range was registered.  That memory is not registered, so nobody would wait for a missing page of
 * it: it would read as zeros.  Such pages go back at once.
 */
static int64_t keep_what_is_ours(struct freezer *fz, uintptr_t address, int64_t got)
{
    if (got <= 0 || owner_kept_registered(fz, address, (uint64_t)got))
        return got;
    freezer_change_what_can_be(fz, take_pages_of_others, address, (uint64_t)got);
    put_frozen(fz, address, 0, (uint64_t)got);
    return -EPERM;
}

static int64_t uffd_freeze(struct freezer *fz, uintptr_t address, uint64_t n, const uint8_t **view)
{
    if (gate_is_in_place(fz))
        return freeze_in_place(fz, address, n, view);
    int error = need_window(fz, n); /* first: the thaw after any error drops n pages of it */
    if (!error)
        error = check_registered(fz, address, n);
    if (!error)
        error = gate_take(fz, address, n, OS_UFFD_MISSING);
    if (error)
        return error;
    int64_t got = moves(fz) ? freeze_by_move(fz, address, n) : freeze_by_remap(fz, address, n);
    *view = (const uint8_t *)*fz->window;
    fz->torn = got < (int64_t)n;
    got = keep_what_is_ours(fz, address, got);
    fz->torn |= got < (int64_t)n;
    return got;
}

/*
 * ---- bringing pages back: the window has the owner's only copy, so no error may end this ----
 */

/*
 * Moves or copies n pages to where they belong.  UFFDIO_MOVE refuses a page
 * that is pinned for a moment (a debugger reads it), and memory whose rights or
 * locks have changed; then the bytes are copied.  Both calls take a range of
 * one mapping only, and the owner may have cut it in several (madvise,
 * mprotect, mlock of a part, munmap): then the range is halved, down to single
 * pages.  If there is no memory for a copy this waits until there is: the
 * threads that need the pages wait as well, which is better than zeros.  Where
 * the program has closed the descriptors nobody waits any more, as the kernel
 * has let all threads go on, and what they write meanwhile is lost.
 */
static void put_pages(struct freezer *fz, uintptr_t to, uintptr_t from, uint64_t n)
{
    bool move = moves(fz);
    uint64_t part = n;
    int tries = 0;
    while (n) {
        part = least(part, n);
        if (!os_is_known(gate_of(fz)) || !os_is_known(fz->wp_fd)) {
            os_copy(to, from, n);
            return;
        }
        int64_t done = move ? os_uffd_move(gate_of(fz), to, from, part)
                            : os_uffd_copy(fz->wp_fd, to, (void *)from, part);
        if ((done == -EINVAL || done == -ENOENT) && part > 1) {
            part /= 2;
            continue;
        }
        if (done > 0)
            tries = 0;
        /* If the owner has unmapped the address for good, there is no place to bring it back to. */
        bool unmapped = done == -ENOENT && tries > 4 * RETRIES;
        if (done == -EEXIST || done == -ESRCH || unmapped)
            done = 1;
        if (done > 0) {
            to += bytes_of((uint64_t)done);
            from += bytes_of((uint64_t)done);
            n -= (uint64_t)done;
            continue;
        }
        /* EAGAIN lasts while a thread that gives memory back waits for its message to be read. */
        bool changing = done == -EAGAIN && tries > RETRIES_AT_ONCE;
        if (done == -EINVAL || changing || ++tries > RETRIES)
            move = false;
        os_sleep_us(50);
    }
}

/*
 * Brings back pages [first, +n) of the range frozen at address; those that were holes stay holes.
 */
static void put_frozen(struct freezer *fz, uintptr_t address, uint64_t first, uint64_t n)
{
    for (uint64_t i = first, end = first + n, length; i < end; i += length) {
        for (length = 1; i + length < end && fz->hole[i + length] == fz->hole[i];)
            length++;
        if (!fz->hole[i])
            put_pages(fz, address + bytes_of(i), *fz->window + bytes_of(i), length);
    }
}

/*
 * Registers memory that mremap has moved into a region: without UFFD_FEATURE_EVENT_REMAP a mapping
 * loses its registration when it is moved.  Until then its pages count as written.  If they cannot
 * be registered at all they are not merged any more.
 */
static void attach_again(struct freezer *fz, uintptr_t address, uint64_t n)
{
    for (int tries = 0; tries < RETRIES; tries++) {
        if (os_uffd_register(fz->uffd, address, n, freezer_registration(fz)) != -ENOMEM)
            return;
        os_sleep_us(50);
    }
}

/*
 * Moves pages back by mremap, if the place still is ours and writable.  Otherwise mremap would
 * replace memory that others have mapped there, or rights that the owner has set: then the pages
 * are filled in one by one, which changes neither.
 */
static void remap_pages(struct freezer *fz, uintptr_t to, uintptr_t from, uint64_t n)
{
    for (int tries = 0, claimed = 0;; tries++) {
        bool here =
            claimed || (os_uffd_is_registered(fz->wp_fd, to, n) && owner_may_write(fz, to, n));
        int moved = here ? os_move_memory(to, from, n) : -ENOENT;
        fz->window_lost |= moved == OS_MOVED_FOR_GOOD;
        if (moved >= 0)
            break;
        claimed = here && os_claim_gap(to, n); /* a failed mremap may have unmapped the place */
        if (!claimed && (!here || tries > RETRIES)) {
            put_frozen(fz, to - (from - *fz->window), (from - *fz->window) >> PAGE_SHIFT, n);
            return;
        }
        os_sleep_us(50);
    }
}

static void uffd_restore(struct freezer *fz, uintptr_t address, uint64_t first, uint64_t n)
{
    if (gate_is_in_place(fz))
        return;
    uintptr_t to = address + bytes_of(first), from = *fz->window + bytes_of(first);
    fz->torn = true;
    if (moves(fz))
        put_frozen(fz, address, first, n);
    else
        remap_pages(fz, to, from, n);
}

/*
 * The holes get the zero page at once: the first touch of a hole would wait for the fault thread.
 */
static int zero_in_place(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int error = gate_empty(fz, address, n);
    if (!error)
        os_populate(address, n, false);
    return error;
}

static int uffd_zero(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags)
{
    (void)vma_flags;
    if (gate_is_in_place(fz))
        return zero_in_place(fz, address, n);
    for (int tries = 0; n; tries++) {
        int64_t done = os_uffd_zero(fz->wp_fd, address, n);
        if (done > 0) {
            address += bytes_of((uint64_t)done);
            n -= (uint64_t)done;
        } else if (tries > RETRIES) {
            return (int)done;
        }
    }
    return 0;
}

/*
 * Wakes the threads that wait for these pages, and makes the messages about them void that the
 * fault thread has read already.  The count moves last, since until these threads are woken the
 * fault thread can still read their messages.
 */
static void wake(struct freezer *fz, uintptr_t address, uint64_t n)
{
    os_uffd_wake(fz->uffd, address, n);
    atomic_fetch_add(&fz->thaws, 1);
}

static void uffd_thaw(struct freezer *fz, uintptr_t address, uint64_t n)
{
    gate_give_back(fz, address, n);
    wake(fz, address, n);
    if (!fz->window || !*fz->window)
        return;
    if (fz->window_lost) {
        *fz->window = 0;
        fz->window_lost = false;
    } else if (fz->torn && fz->window == &fz->windows[1]) {
        os_unmap((void *)*fz->window, bytes_of(FREEZE_HUGE));
        *fz->window = 0;
    } else {
        os_drop(*fz->window, n);
    }
}

/* ---- giving overlays back ---- */

static uintptr_t uffd_shadow(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags)
{
    (void)vma_flags; /* the shadow is made from a page of the region, and so has its flags */
    if (check_registered(fz, address, 1))
        return 0;
    fz->mapped[0] = false;
    int error = gate_take(fz, address, 1, OS_UFFD_MISSING);
    uintptr_t shadow = error ? 0 : shadow_by_displacing(fz->wp_fd, address, n);
    gate_give_back(fz, address, 1);
    wake(fz, address, 1);
    return shadow;
}

/*
 * Writers wait and readers go on, since no page is missing at any time.  Asynchronous protection,
 * which tracks writes, does not make writers wait, hence the gate's userfaultfd.  A write before
 * the range is tracked again is not missed: all of the range counts as written then.
 */
static int uffd_unoverlay(struct freezer *fz, uintptr_t address, uint64_t n, uintptr_t shadow,
                          int vma_flags)
{
    int error = gate_bring_back(fz, address, n, shadow, vma_flags);
    if (error)
        return error;
    attach_again(fz, address, n);
    wake(fz, address, n);
    os_uffd_wake(gate_of(fz), address, n);
    return 0;
}

/* The range is registered before it is committed, so that no thread can find it empty. */
static void uffd_rebuild(struct freezer *fz, uintptr_t address, uintptr_t from, uint64_t n)
{
    bool filled_later = os_uffd_register(gate_of(fz), address, n, OS_UFFD_MISSING) == 0;
    while (os_commit((void *)address, bytes_of(n)) < 0)
        os_sleep_us(50);
    if (filled_later)
        put_pages(fz, address, from, n);
    else
        memcpy((void *)address, (const void *)from, bytes_of(n));
    os_uffd_unregister(gate_of(fz), address, n);
}

/* What moving and remapping have in common. */
#define WAY                                                                                        \
    .registration = OS_UFFD_MISSING, .forgets_writes = true, .fills_holes = true,                  \
    .init = uffd_init, .start = fault_thread_start, .stop = fault_thread_stop,                     \
    .abandon = stage_close, .freeze = uffd_freeze, .restore = uffd_restore, .zero = uffd_zero,     \
    .thaw = uffd_thaw, .shadow = uffd_shadow, .unoverlay = uffd_unoverlay, .rebuild = uffd_rebuild

const struct freezer_ops freeze_by_moving = {WAY, .features = OS_UFFD_MOVE, .refuses_pinned = true,
                                             .zeros_away = true};
const struct freezer_ops freeze_by_remapping = {WAY};
