#include "freeze/gate.h"

#include <errno.h>

#include "base/pages.h"
#include "freeze/home.h"
#include "freeze/ops.h"
#include "freeze/protection.h"
#include "freeze/registration.h"
#include "freeze/replace.h"
#include "freeze/stage.h"
#include "os/map.h"
#include "os/proc_maps.h"
#include "os/uffd.h"

bool gate_is_in_place(const struct freezer *fz)
{
    return fz->to_zeros && !fz->ops->zeros_away;
}

int gate_of(const struct freezer *fz)
{
    return fz->removals.gate_fd;
}

int gate_take(struct freezer *fz, uintptr_t address, uint64_t n, int uffd_mode)
{
    fz->taken = true;
    int error = os_uffd_unregister(freezer_home(fz), address, n);
    return error ? error : os_uffd_register(gate_of(fz), address, n, uffd_mode);
}

/*
 * Returns a range to the userfaultfd that it came from.  If the kernel refuses to part a page from
 * the gate, the page is unprotected there, so that its writers go on all the same.  Such a page is
 * not tracked any more and looks unwritten for ever, which costs merges and no byte.
 */
static void give_back(struct freezer *fz, uintptr_t address, uint64_t n)
{
    if (os_uffd_unregister(gate_of(fz), address, n) == 0) {
        freezer_change_what_can_be(fz, freezer_register, address, n);
        return;
    }
    if (n == 1) {
        freezer_let_writers_go(fz, address, 1);
        return;
    }
    give_back(fz, address, n / 2);
    give_back(fz, address + bytes_of(n / 2), n - n / 2);
}

void gate_give_back(struct freezer *fz, uintptr_t address, uint64_t n)
{
    if (!fz->taken)
        return;
    for (uint64_t i = 0, length; i < n; i += length) {
        for (length = 1; i + length < n && fz->mapped[i + length] == fz->mapped[i];)
            length++;
        if (!fz->mapped[i])
            give_back(fz, address + bytes_of(i), length);
    }
    fz->taken = false;
    os_uffd_wake(gate_of(fz), address, n);
}

/*
 * Is the range still our PROT_NONE reservation, or free, in which case it is reserved again?  A
 * failed mremap may have unmapped its target, where another thread may have mapped memory since.
 */
static bool is_reserved(struct freezer *fz, uintptr_t address, uint64_t n)
{
    struct os_maps *maps = &fz->removals.maps;
    struct os_vma vma;
    os_maps_refresh(maps);
    return os_claim(address, n) == 0 ||
           (os_maps_find(maps, address, &vma) > 0 && vma.start <= address &&
            address + bytes_of(n) <= vma.end && !vma.inode && !vma.shared && !vma.private_rw &&
            !vma.private_ro);
}

/*
 * Moves pages into the trash, and drops them there by a new reservation over them.  They keep their
 * place modulo a huge page, so that mremap moves a huge page whole instead of splitting it.
 */
static int move_to_trash(struct freezer *fz, uintptr_t address, uint64_t n)
{
    if (!fz->trash)
        fz->trash = (uintptr_t)os_reserve_in_step(bytes_of(FREEZE_HUGE), 0);
    if (!fz->trash || !os_can_map(n))
        return -ENOMEM;
    uintptr_t to = fz->trash + address % bytes_of(FREEZE_HUGE);
    int error = os_remap(to, address, n, true);
    if (error ? !is_reserved(fz, to, n) : os_reserve_at(to, n) != 0)
        fz->trash = 0;
    return error;
}

/* mremap moves no range that crosses mappings (EFAULT): such a range is moved in halves. */
int gate_empty(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int error = os_is_locked(address, n) ? -EINVAL : move_to_trash(fz, address, n);
    if (error != -EFAULT || n == 1)
        return error;
    error = gate_empty(fz, address, n / 2);
    return error ? error : gate_empty(fz, address + bytes_of(n / 2), n - n / 2);
}

static void return_overlays(struct freezer *fz, uintptr_t address, uint64_t n)
{
    freezer_leave_overlays(fz, address, n);
    os_uffd_wake(gate_of(fz), address, n);
    freezer_track_overlay(fz, address, n);
}

int gate_bring_back(struct freezer *fz, uintptr_t address, uint64_t n, uintptr_t shadow,
                    int vma_flags)
{
    int error = freezer_take_overlays(fz, address, n);
    if (!error)
        error = freezer_still(fz, address, n);
    if (!error)
        error = stage_bring_back(fz, address, n, shadow, vma_flags);
    if (error)
        return_overlays(fz, address, n);
    return error;
}
