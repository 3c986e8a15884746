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
#include "freeze/replace.h"
#include "freeze/shadow.h"
#include "freeze/stage.h"
#include "os/clock.h"
#include "os/map.h"
#include "os/pagemap.h"
#include "os/uffd.h"

#define RETRIES 64 /* of a transient refusal, 50 us apart, before the slower way is taken */
#define RETRIES_AT_ONCE 8

static bool moves(const struct freezer *fz)
{
    return fz->ops->features & OS_UFFD_MOVE;
}

static int open_uffds(struct freezer *fz)
{
    bool kernel_mode;
    int tracks = fz->tracked ? OS_UFFD_WP_ASYNC : 0;
    fz->uffd = os_uffd_open(tracks | fz->ops->features, &kernel_mode);
    if (fz->uffd < 0)
        return fz->uffd;
    fz->wp_fd = os_uffd_open(OS_UFFD_WP_SYNC | fz->ops->features, &kernel_mode);
    if (fz->wp_fd < 0)
        return fz->wp_fd;
    fz->stop_fd = eventfd(0, EFD_CLOEXEC);
    return fz->stop_fd < 0 ? -errno : 0;
}

/*
 * The window of uffd-move is registered memory of our own, kept from children
 * so that a fork does not make its pages "shared".  The window of uffd-remap
 * becomes a piece of a region and may not be marked.
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
    stage_open(fz); /* without it the small stage stays, and costs mappings */
    return error ? error : open_window(fz, FREEZE_MAX);
}

/* ---- freezing ---- */

/*
 * A failed mremap may have unmapped its target.  It is claimed back; where that
 * fails it was not unmapped, or another thread has mapped something there, and
 * nobody can tell which: then that range is given up.
 */
static void reclaim_window(struct freezer *fz, uint64_t n)
{
    if (os_claim(*fz->window, n) || os_commit((void *)*fz->window, bytes_of(n)))
        *fz->window = 0;
}

/*
 * Empty: what lies in it will be taken for the owner's pages.  mlockall() may have filled it, and
 * kept it full at the last thaw; another process that looks at our memory has the fault thread
 * fill it, unless that waits for the lock we hold.
 */
static int need_window(struct freezer *fz, uint64_t n)
{
    bool huge = n > FREEZE_MAX;
    fz->window = &fz->windows[huge];
    int error = *fz->window ? 0 : open_window(fz, huge ? FREEZE_HUGE : FREEZE_MAX);
    return error ? error : os_drop(*fz->window, n);
}

static int find_holes(struct freezer *fz, uint64_t n)
{
    uint8_t kinds[FREEZE_HUGE];
    int error = os_pages(fz->pagemap_fd, *fz->window, n, kinds);
    for (uint64_t i = 0; i < n; i++)
        fz->hole[i] = error || kinds[i] == OS_PAGE_NONE;
    return error;
}

static void put_frozen(struct freezer *fz, uintptr_t address, uint64_t first, uint64_t n);

/*
 * A mapping takes its rights along.  What its owner had protected may have other rights by the time
 * it is moved back, hence the pages are copied: that leaves the place with the rights it has.
 */
static int return_protected(struct freezer *fz, uintptr_t address, uint64_t n)
{
    os_protect(*fz->window, n, true);
    put_frozen(fz, address, 0, n);
    return -EPERM;
}

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
 * The answer can be less than what was done: Linux 6.18 was seen to move pages
 * and to say EAGAIN, or how many it had moved before those.  The window was
 * empty before, so the window tells; whatever lies there must not be dropped.
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
        if (i >= RETRIES_AT_ONCE) /* whoever holds the page does not run */
            os_sleep_us(50);
    }
    return got;
}

/*
 * Taking pages away freezes them only where we are registered for missing ones;
 * the kernel takes them from anywhere.  It fills a hole only where somebody is
 * registered, and says EEXIST where there is none.  One page speaks for all
 * that lie in its mapping, and to move refuses a range of more than one.  So
 * does mremap, but some kernels (6.18) leave the window alone then and others
 * (6.1) do not, and a window in doubt is given up: hence it is asked before.
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
 * What will be zeros stays where it is, and only its writers wait: memory that mremap has moved is
 * a mapping of its own for ever.
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
 * They may be another's, who got the place since it was registered: nobody waits for them there, so
 * they go back at once.
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
 * ---- filling what is missing: nothing may be given up here, it holds the owner's only copy ----
 */

/*
 * Moves or copies n pages to where they belong.  Moving is refused for a page
 * that somebody else pins for a moment (a debugger reading memory), or where
 * the rights or a lock are other ones by now; then the bytes are copied.  Both
 * take a range of one mapping only, and the owner may have cut it in several
 * (madvise, mprotect, mlock of a part, munmap): then they go one by one.  Out
 * of memory is waited for: the threads that need the pages wait as well, which
 * is better than to give them zeros.
 */
static void put_pages(struct freezer *fz, uintptr_t to, uintptr_t from, uint64_t n)
{
    bool move = moves(fz);
    uint64_t part = n;
    int tries = 0;
    while (n) {
        part = least(part, n);
        int64_t done = move ? os_uffd_move(gate_of(fz), to, from, part)
                            : os_uffd_copy(fz->wp_fd, to, (void *)from, part);
        if ((done == -EINVAL || done == -ENOENT) && part > 1) {
            part /= 2;
            continue;
        }
        if (done > 0)
            tries = 0;
        bool unmapped = done == -ENOENT && tries > 4 * RETRIES; /* there is nothing to give it to */
        if (done == -EEXIST || done == -ESRCH || unmapped)
            done = 1;
        if (done > 0) {
            to += bytes_of((uint64_t)done);
            from += bytes_of((uint64_t)done);
            n -= (uint64_t)done;
            continue;
        }
        bool changing = done == -EAGAIN && tries > RETRIES_AT_ONCE; /* somebody gives it back */
        if (done == -EINVAL || changing || ++tries > RETRIES)
            move = false;
        os_sleep_us(50);
    }
}

/* Pages [first, +n) of the range that was frozen at address, without those that were not there. */
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
 * What was moved is registered with nobody, since only events would make a registration follow it.
 * The pages are there, and until then they count as written; where they cannot be registered they
 * are not merged any more.
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
 * To fill pages does nothing to memory that others have mapped there meanwhile, or to the rights
 * that the owner gave it.
 */
static void remap_pages(struct freezer *fz, uintptr_t to, uintptr_t from, uint64_t n)
{
    for (int tries = 0;; tries++) {
        bool here = os_uffd_is_registered(fz->wp_fd, to, n) && owner_may_write(fz, to, n);
        if (here && os_remap(to, from, n, true) == 0)
            break;
        if (!here || tries > RETRIES) {
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

/* Holes are filled, since the first touch of one would come to the fault thread. */
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
 * Whoever waits for these pages goes on; messages about them that were read before are void.  The
 * count moves last: until they are woken, what they wait for can still be read.
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
    if (fz->torn && fz->window == &fz->windows[1]) {
        os_unmap((void *)*fz->window, bytes_of(FREEZE_HUGE));
        *fz->window = 0;
    } else {
        os_drop(*fz->window, n);
    }
}

/* ---- giving overlays back ---- */

static uintptr_t uffd_shadow(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags)
{
    (void)vma_flags; /* it has those of the region */
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
 * Writers wait, readers go on: nothing is ever missing.  The kernel's asynchronous protection would
 * not make writers wait, hence the second userfaultfd.  What is written before the range is tracked
 * again counts as written, as all of it does.
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

/* Nobody may find it empty: it is registered before it is committed. */
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
