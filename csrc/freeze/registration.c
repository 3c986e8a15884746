#include "freeze/registration.h"

#include <errno.h>

#include "base/pages.h"
#include "freeze/home.h"
#include "freeze/known_mappings.h"
#include "freeze/ops.h"
#include "freeze/removal_thread.h"
#include "os/clock.h"
#include "os/map.h"
#include "os/proc_maps.h"
#include "os/uffd.h"

/*
 * How often a registration that found no free mapping is repeated, 50 us apart: some milliseconds,
 * for which the scanner waits at most before the overlay is left unwatched.
 */
#define RETRIES 64

int freezer_fill_holes(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int error = fz->ops->fills_holes ? os_populate(address, n, false) : 0;
    /* EINVAL: MADV_POPULATE_READ came with Linux 5.14.  Before it the fault thread fills holes. */
    return error == -EINVAL ? 0 : error;
}

int freezer_attach(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int error = removals_start(fz);
    return error ? error : freezer_register(fz, address, n);
}

uint64_t freezer_mappings(const struct freezer *fz)
{
    return freezer_registration(fz) ? 2 : 0;
}

static int leave_home(struct freezer *fz, uintptr_t address, uint64_t n)
{
    return os_uffd_unregister(freezer_home(fz), address, n);
}

/*
 * Memory that its owner mapped over a new overlay, in the moment before that was registered, belongs
 * to the userfaultfd of overlays.
 */
static int leave_either(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int error = leave_home(fz, address, n);
    return error == -EINVAL ? os_uffd_unregister(fz->removals.overlay_fd, address, n) : error;
}

/*
 * Overlays stay registered, since those that their owner has protected outlive their region.  Linux
 * 6.12 unregisters what belongs to another userfaultfd as well (6.18 does not), so they are passed
 * over.
 */
static int leave_but_overlays(struct freezer *fz, uintptr_t address, uint64_t n)
{
    struct removals *removals = &fz->removals;
    uintptr_t end = address + bytes_of(n);
    struct os_vma vma;
    int failure = 0;
    removals_hold(fz);
    os_maps_refresh(&removals->maps);
    for (; address < end && os_maps_find(&removals->maps, address, &vma) > 0; address = vma.end) {
        uintptr_t start = vma.start > address ? vma.start : address;
        uintptr_t stop = vma.end < end ? vma.end : end;
        if (start >= stop || os_vma_shows(&vma, removals->inode, removals->dev))
            continue;
        int error = leave_either(fz, start, (stop - start) >> PAGE_SHIFT);
        failure = failure ? failure : error;
    }
    removals_let_go(fz);
    return failure;
}

int freezer_detach(struct freezer *fz, uintptr_t address, uint64_t n)
{
    known_mapping_ends(fz, address);
    if (fz->removals.overlay_fd >= 0)
        return leave_but_overlays(fz, address, n);
    int error = freezer_home(fz) >= 0 ? leave_home(fz, address, n) : 0;
    /* The owner has put other memory into a part of the range: the rest is unregistered. */
    if (error && error != -ENOMEM)
        freezer_change_what_can_be(fz, leave_home, address, n);
    return error;
}

int freezer_track_overlay(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int fd = fz->removals.overlay_fd >= 0 ? fz->removals.overlay_fd : fz->uffd;
    int error = removals_start(fz);
    return error || fd < 0 ? error : os_uffd_register(fd, address, n, OS_UFFD_WP);
}

/*
 * Registers for write protection only, never for missing pages.  Its owner may have mapped other
 * memory over the overlay meanwhile, which is then registered in its place: whoever touched a
 * missing page of that would wait for a page that nobody brings.
 */
void freezer_watch_overlay(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int fd = fz->removals.overlay_fd;
    for (int tries = 0; fd >= 0 && os_uffd_register(fd, address, n, OS_UFFD_WP) == -ENOMEM;
         tries++) {
        if (tries > RETRIES)
            return;
        os_sleep_us(50);
    }
}
