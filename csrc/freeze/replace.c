#include "freeze/replace.h"

#include <errno.h>

#include "base/pages.h"
#include "freeze/ops.h"
#include "freeze/owner.h"
#include "os/direct_io.h"
#include "os/guard.h"
#include "os/map.h"
#include "os/pagemap.h"

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
 * 0 if the overlays whose writers wait are still there, as they were copied.  What their owner has put
 * in their place since, or somebody else, belongs to no userfaultfd: -ESTALE.
 */
static int check_overlays(struct freezer *fz, uintptr_t address, uint64_t n)
{
    if (fz->wp_fd < 0)
        return owner_kept_overlays(fz, address, n) ? 0 : -ESTALE;
    return owner_kept_registered(fz, address, n) ? owner_check_protected(fz, address, n) : -ESTALE;
}

/*
 * A failed mremap may have unmapped its target: then the pages at from are the
 * only copy of the bytes.  os_can_map() makes such a failure unlikely.  If it
 * happens, they are moved all the same, or the range is claimed again and filled from that copy.
 */
int freezer_replace(struct freezer *fz, uintptr_t address, uintptr_t from, uint64_t n)
{
    if (!os_can_map(n))
        return -ENOMEM;
    int error = check_overlays(fz, address, n);
    if (error)
        return error;
    error = os_move_memory(address, from, n);
    fz->moved_for_good = error == OS_MOVED_FOR_GOOD;
    if (fz->moved_for_good)
        return 0;
    if (!error || !os_claim_gap(address, n))
        return error; /* the range could not be claimed, so the overlay is still mapped there */
    fz->ops->rebuild(fz, address, from, n);
    return 0;
}
