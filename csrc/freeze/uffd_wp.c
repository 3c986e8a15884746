/*
 * Freezing by write protection.  The pages stay where they are: whoever reads
 * them goes on, thread or system call, and whoever writes into one sleeps in
 * the kernel until the range is thawed.
 *
 * A mapping has one userfaultfd, and the one that tracks writes never makes a
 * writer wait.  So a range is taken from it, and given to one that does:
 *
 *   region   | a | b | c | d |      tracked
 *   freeze   | a | b | c | d |      b and c belong to the gate, and are protected: writers wait
 *   compare in place
 *   overlay  | a |frame frame| d |  writers still wait
 *   thaw     | a |frame frame| d |  tracked again; writers go on
 *
 * When b and c leave the tracking userfaultfd the kernel forgets what it has
 * noted of writes to them and was not asked for: so pages that were frozen and
 * not merged have to be looked at anew.
 *
 * Nothing is ever absent: what its owner moves elsewhere (mremap) takes its bytes
 * along.  So no fault has to be answered, and there is no thread for it.
 */
#include "freeze/uffd_wp.h"

#include <errno.h>
#include <string.h>

#include "base/pages.h"
#include "freeze/borrow.h"
#include "freeze/gate.h"
#include "freeze/home.h"
#include "freeze/ops.h"
#include "freeze/protection.h"
#include "freeze/registration.h"
#include "freeze/shadow.h"
#include "freeze/stage.h"
#include "os/clock.h"
#include "os/map.h"
#include "os/uffd.h"
#include "os/write_tracking.h"

static int wp_init(struct freezer *fz)
{
    if (fz->tracked)
        fz->uffd = os_uffd_open(OS_UFFD_WP_ASYNC);
    if (fz->tracked && fz->uffd < 0)
        return fz->uffd;
    fz->wp_fd = os_uffd_open(OS_UFFD_WP_SYNC);
    if (fz->wp_fd < 0)
        return fz->wp_fd;
    stage_open(fz); /* if it fails, the stage that does not slide stays, and costs mappings */
    return 0;
}

/* ---- freezing ---- */

/*
 * -ENOENT if a part of the range is registered no more: memory that anybody has mapped there since is
 * not.  To protect it tells, too, and takes a look at each page.
 */
static int check_registered(struct freezer *fz, uintptr_t address, uint64_t n)
{
    if (fz->tracked && os_uffd_is_registered(fz->wp_fd, address, n) &&
        os_is_tracked(fz->pagemap_fd, address))
        return 0;
    return os_uffd_protect(fz->wp_fd, address, n, fz->tracked);
}

/* Gives a range to the gate, if all of it is still registered. */
static int take_over(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int error = check_registered(fz, address, n);
    if (error)
        return error == -ENOENT ? -EPERM : error;
    return gate_take(fz, address, n, OS_UFFD_WP);
}

static int64_t wp_freeze(struct freezer *fz, uintptr_t address, uint64_t n, const uint8_t **view)
{
    int error = take_over(fz, address, n);
    if (error == -EPERM)
        return n > 1 ? -ENOENT : error;
    if (!error)
        error = freezer_block_in_place(fz, address, n);
    if (error) {
        gate_give_back(fz, address, n);
        return error;
    }
    *view = (const uint8_t *)address;
    return (int64_t)n;
}

/*
 * Nothing is done here.  To give a part of the range back would split its mapping, which can fail:
 * so thaw() gives back all that has not become an overlay.
 */
static void wp_restore(struct freezer *fz, uintptr_t address, uint64_t first, uint64_t n)
{
    (void)fz, (void)address, (void)first, (void)n;
}

static int wp_zero(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags)
{
    (void)vma_flags;
    return gate_empty(fz, address, n);
}

/* ---- giving overlays back ---- */

/* No page of the region goes away for it: its owner may move it just then, and would find it empty. */
static uintptr_t wp_shadow(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags)
{
    uintptr_t shadow = shadow_by_borrowing(fz, address, n, vma_flags);
    return shadow ? shadow : shadow_afresh(address, n, vma_flags);
}

/*
 *   overlay  | frame | own copy | frame |    writers wait, readers go on
 *   shadow   | bytes | bytes    | bytes |    filled with what the overlay shows
 *   region   | bytes | bytes    | bytes |    the shadow's pages, in one step
 *
 * Without a shadow the pages come from the stage, and cost mappings.
 */
static int wp_unoverlay(struct freezer *fz, uintptr_t address, uint64_t n, uintptr_t shadow,
                        int vma_flags)
{
    int error = gate_bring_back(fz, address, n, shadow, vma_flags);
    if (error)
        return error;
    freezer_register(fz, address, n);
    os_uffd_wake(gate_of(fz), address, n);
    return 0;
}

static void wp_rebuild(struct freezer *fz, uintptr_t address, uintptr_t from, uint64_t n)
{
    int error = os_uffd_register(fz->wp_fd, address, n, OS_UFFD_MISSING);
    while (os_commit((void *)address, bytes_of(n)) < 0)
        os_sleep_us(50);
    if (error)
        memcpy((void *)address, (const void *)from, bytes_of(n));
    while (!error && stage_fill(fz->wp_fd, address, from, n) < 0)
        ;
    os_uffd_unregister(fz->wp_fd, address, n);
}

const struct freezer_ops freeze_by_protection = {
    .registration = OS_UFFD_WP,
    .forgets_writes = true,
    .holds_up_writers_only = true,
    .init = wp_init,
    .abandon = stage_close,
    .freeze = wp_freeze,
    .restore = wp_restore,
    .zero = wp_zero,
    .thaw = gate_give_back,
    .shadow = wp_shadow,
    .unoverlay = wp_unoverlay,
    .rebuild = wp_rebuild,
};
