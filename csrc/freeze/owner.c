#include "freeze/owner.h"

#include <errno.h>
#include <string.h>

#include "base/pages.h"
#include "freeze/ops.h"
#include "os/files.h"
#include "os/pagemap.h"
#include "os/proc_maps.h"
#include "os/uffd.h"

/* The mapping at this address, if there is one. */
static bool find(struct freezer *fz, uintptr_t address, struct os_vma *vma)
{
    return os_maps_find(&fz->removals.maps, address, vma) > 0 && vma->start <= address;
}

/* Is every page private memory of the file (inode, dev), with these rights?  0, 0 means no file. */
static bool is_all(struct freezer *fz, uintptr_t address, uint64_t n, bool writable, uint64_t inode,
                   uint64_t dev)
{
    uintptr_t end = address + bytes_of(n);
    struct os_vma vma;
    if (!fz->removals.maps.query)
        return true;
    while (address < end && find(fz, address, &vma) && os_vma_shows(&vma, inode, dev) &&
           (writable ? vma.private_rw : vma.private_ro))
        address = vma.end;
    return address >= end;
}

static bool is_plain(struct freezer *fz, uintptr_t address, uint64_t n, bool writable)
{
    return is_all(fz, address, n, writable, 0, 0);
}

bool owner_may_write(struct freezer *fz, uintptr_t address, uint64_t n)
{
    return is_plain(fz, address, n, true);
}

static bool is_all_overlays(struct freezer *fz, uintptr_t address, uint64_t n, bool writable)
{
    return is_all(fz, address, n, writable, fz->removals.inode, fz->removals.dev);
}

bool owner_may_write_overlays(struct freezer *fz, uintptr_t address, uint64_t n)
{
    return is_all_overlays(fz, address, n, true);
}

/* The kernel answers for one mapping at a time.  The range may have several: halves are asked. */
bool owner_kept_registered(const struct freezer *fz, uintptr_t address, uint64_t n)
{
    uint64_t half = n / 2;
    return os_uffd_is_registered(fz->wp_fd, address, n) ||
           (half && owner_kept_registered(fz, address, half) &&
            owner_kept_registered(fz, address + bytes_of(half), n - half));
}

int owner_check_protected(struct freezer *fz, uintptr_t address, uint64_t n)
{
    bool unprotected[FREEZE_HUGE];
    int error = os_unprotected(fz->pagemap_fd, address, n, unprotected);
    if (error)
        return error;
    return memchr(unprotected, true, n) ? -ESTALE : 0;
}

bool owner_kept(struct freezer *fz, uintptr_t address, uint64_t n)
{
    if (fz->wp_fd >= 0 && !(os_is_known(fz->wp_fd) && owner_kept_registered(fz, address, n)))
        return false;
    if (!is_plain(fz, address, n, !fz->ops->read_only))
        return false;
    return !fz->in_place || owner_check_protected(fz, address, n) == 0;
}

bool owner_kept_overlays(struct freezer *fz, uintptr_t address, uint64_t n)
{
    return is_all_overlays(fz, address, n, false);
}

uint64_t owner_left_read_only(struct freezer *fz, uintptr_t address, uint64_t n, bool overlays,
                              bool *read_only)
{
    struct os_vma vma;
    uint64_t inode = overlays ? fz->removals.inode : 0, dev = overlays ? fz->removals.dev : 0;
    int found = fz->removals.maps.query ? os_maps_find(&fz->removals.maps, address, &vma) : -ENOSYS;
    bool there = found > 0 && vma.start <= address;
    *read_only = !there || (vma.private_ro && os_vma_shows(&vma, inode, dev));
    if (found <= 0)
        return n;
    return least(n, ((vma.start > address ? vma.start : vma.end) - address) >> PAGE_SHIFT);
}
