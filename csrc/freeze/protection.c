#include "freeze/protection.h"

#include <errno.h>

#include "base/pages.h"
#include "freeze/home.h"
#include "freeze/ops.h"
#include "os/map.h"
#include "os/pagemap.h"
#include "os/uffd.h"

/*
 * Old kernels (6.1 for one) protect no more than lies in one mapping at a time
 * (ENOENT), and after a fork neighbours with equal rights need not be one.
 */
static int protect(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int error = os_uffd_protect(fz->wp_fd, address, n, true);
    if (error != -ENOENT || n == 1)
        return error;
    error = 0;
    for (uint64_t i = 0; i < n && !error; i++)
        error = os_uffd_protect(fz->wp_fd, address + bytes_of(i), 1, true);
    return error;
}

/*
 * Protects memory that a userfaultfd has which blocks: from then on its writers wait.
 *
 * The kernel's own KSM is kept away: when it replaces a page by an equal one it forgets that the
 * page was protected, and on Linux 6.18 writers were seen to go on then.
 */
static int block_writers(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int error = os_keep_from_ksm(address, n);
    return error ? error : protect(fz, address, n);
}

int freezer_let_writers_go(struct freezer *fz, uintptr_t address, uint64_t n)
{
    return os_uffd_protect(fz->wp_fd, address, n, false);
}

/*
 * Unregisters overlays.  Those that their owner has moved into a region were registered as the
 * region's own memory, so they belong to another userfaultfd than other overlays (EINVAL).
 */
static int leave(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int error = os_uffd_unregister(fz->removals.overlay_fd, address, n);
    return error == -EINVAL ? os_uffd_unregister(freezer_home(fz), address, n) : error;
}

int freezer_take_overlays(struct freezer *fz, uintptr_t address, uint64_t n)
{
    freezer_change_what_can_be(fz, leave, address, n);
    int error = os_uffd_register(fz->removals.gate_fd, address, n, OS_UFFD_WP);
    return error ? error : block_writers(fz, address, n);
}

void freezer_leave_overlays(struct freezer *fz, uintptr_t address, uint64_t n)
{
    if (os_uffd_unregister(fz->removals.gate_fd, address, n) != 0)
        freezer_change_what_can_be(fz, freezer_let_writers_go, address, n);
}

int freezer_block_in_place(struct freezer *fz, uintptr_t address, uint64_t n)
{
    fz->in_place = true;
    int error = block_writers(fz, address, n);
    return error ? error : os_unprotected(fz->pagemap_fd, address, n, fz->hole);
}
