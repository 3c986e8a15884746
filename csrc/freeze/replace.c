#include "freeze/replace.h"

#include <errno.h>

#include "base/pages.h"
#include "freeze/home.h"
#include "freeze/ops.h"
#include "freeze/owner.h"
#include "os/direct_io.h"
#include "os/guard.h"
#include "os/map.h"
#include "os/pagemap.h"
#include "os/uffd.h"

int freezer_still(struct freezer *fz, uintptr_t address, uint64_t n)
{
    uint8_t kinds[FREEZE_HUGE];
    bool copies = os_pages(fz->pagemap_fd, address, n, kinds) < 0;
    for (uint64_t i = 0; i < n && !copies; i++)
        copies = kinds[i] != OS_PAGE_NONE && kinds[i] != OS_PAGE_FILE;
    return copies ? os_direct_io(fz->tasks_fd, address, n) : 0;
}

int freezer_copy(uintptr_t to, uintptr_t address, uint64_t n)
{
    return guard_copy((void *)to, (const void *)address, bytes_of(n)) ? 0 : -EFAULT;
}

/*
 * The kernel's KSM puts another page in the place of one that is equal, and forgets that it was
 * protected: on Linux 6.18 writers went on then.
 *
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

int freezer_block_writers(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int error = os_keep_from_ksm(address, n);
    return error ? error : protect(fz, address, n);
}

int freezer_let_writers_go(struct freezer *fz, uintptr_t address, uint64_t n)
{
    return os_uffd_protect(fz->wp_fd, address, n, false);
}

/* Overlays that their owner has moved into a region were taken for its own memory. */
static int leave(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int error = os_uffd_unregister(fz->removals.overlay_fd, address, n);
    return error == -EINVAL ? os_uffd_unregister(freezer_home(fz), address, n) : error;
}

int freezer_take_overlays(struct freezer *fz, uintptr_t address, uint64_t n)
{
    freezer_change_what_can_be(fz, leave, address, n);
    int error = os_uffd_register(fz->removals.gate_fd, address, n, OS_UFFD_WP);
    return error ? error : freezer_block_writers(fz, address, n);
}

void freezer_leave_overlays(struct freezer *fz, uintptr_t address, uint64_t n)
{
    if (os_uffd_unregister(fz->removals.gate_fd, address, n) != 0)
        freezer_change_what_can_be(fz, freezer_let_writers_go, address, n);
}

int freezer_block_in_place(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int error = freezer_block_writers(fz, address, n);
    return error ? error : os_unprotected(fz->pagemap_fd, address, n, fz->hole);
}

/*
 * Are the overlays whose writers wait still there?  -ESTALE: not all of them.  What their owner has put in their place since,
 * or somebody else, belongs to no userfaultfd, and cannot be protected.
 */
static int check_overlays(struct freezer *fz, uintptr_t address, uint64_t n)
{
    if (fz->wp_fd < 0)
        return owner_kept_overlays(fz, address, n) ? 0 : -ESTALE;
    int error = protect(fz, address, n);
    return error == -ENOENT ? -ESTALE : error;
}

/*
 * A failed mremap that has unmapped its target leaves nothing but our copy.
 * os_can_map() makes that unlikely; here it is made good.
 */
int freezer_replace(struct freezer *fz, uintptr_t address, uintptr_t from, uint64_t n)
{
    if (!os_can_map(n))
        return -ENOMEM;
    int error = check_overlays(fz, address, n);
    if (error)
        return error;
    error = os_remap(address, from, n, true);
    if (!error || os_claim(address, n) != 0)
        return error; /* it is still mapped */
    fz->ops->rebuild(fz, address, from, n);
    return 0;
}
