#include "freeze/ready.h"

#include <errno.h>

#include "base/pages.h"
#include "os/guard.h"
#include "os/map.h"

/* Its place in a huge page is that of the region's pages, so that page tables are moved whole. */
static uintptr_t place_for(const struct freezer *fz, uintptr_t address)
{
    return fz->ready + address % bytes_of(FREEZE_HUGE);
}

/*
 * A call has left a gap, in which another thread may map memory: the reservation is never used again,
 * since nobody can tell which parts of it are left.
 */
static void lose_place(struct freezer *fz)
{
    fz->ready = fz->ready_for = fz->ready_n = 0;
}

/*
 * mremap() asks whether there may be so much more memory after it has unmapped what was in the place:
 * where that is limited it could fail there.
 */
bool ready_make(struct freezer *fz, uintptr_t address, uint64_t n, int memfd, uint64_t offset)
{
    if (fz->removals.overlay_fd < 0 || os_is_rationed())
        return false;
    if (!fz->ready)
        fz->ready = (uintptr_t)os_reserve_in_step(bytes_of(FREEZE_HUGE), 0);
    uintptr_t at = place_for(fz, address);
    int error = fz->ready ? os_map_frames(at, n, memfd, offset) : -ENOMEM;
    if (error == -EEXIST)
        lose_place(fz);
    if (error)
        return false;
    fz->ready_for = address;
    fz->ready_n = n;
    fz->ready_offset = offset;
    return guard_touch(at, at + bytes_of(n), bytes_of(FAULT_AROUND));
}

static bool is_ready_for(const struct freezer *fz, uintptr_t address, uint64_t n, uint64_t offset)
{
    return address >= fz->ready_for &&
           address + bytes_of(n) <= fz->ready_for + bytes_of(fz->ready_n) &&
           offset == fz->ready_offset + (address - fz->ready_for);
}

/* Has a filter of the program's (seccomp) refused the call, which has done nothing then? */
static bool is_forbidden(int error)
{
    return error == -EPERM || error == -EACCES || error == -ENOSYS;
}

int ready_move(struct freezer *fz, uintptr_t address, uint64_t n, int memfd, uint64_t offset)
{
    if (!is_ready_for(fz, address, n, offset))
        return -ENOENT;
    int error = os_move_frames(address, place_for(fz, address), n, memfd, offset);
    if (error == OS_MOVED_FOR_GOOD) {
        lose_place(fz);
        return 0;
    }
    return is_forbidden(error) ? -ENOENT : error;
}

void ready_end(struct freezer *fz)
{
    if (fz->ready_n && os_reserve_at(place_for(fz, fz->ready_for), fz->ready_n) != 0)
        lose_place(fz);
    fz->ready_for = fz->ready_n = 0;
}
