#include "freeze/registration.h"

#include <errno.h>

#include "freeze/home.h"
#include "freeze/ops.h"
#include "freeze/removals.h"
#include "os/clock.h"
#include "os/map.h"
#include "os/uffd.h"

#define RETRIES 64 /* 50 us apart */

int freezer_fill_holes(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int error = fz->ops->fills_holes ? os_populate(address, n, false) : 0;
    return error == -EINVAL ? 0 : error; /* before Linux 5.14; the fault thread fills holes */
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

int freezer_detach(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int error = freezer_home(fz) >= 0 ? leave_home(fz, address, n) : 0;
    if (error && error != -ENOMEM) /* not all of it is ours any more */
        freezer_change_what_can_be(fz, leave_home, address, n);
    return error;
}

int freezer_track_overlay(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int fd = fz->removals.overlay_fd >= 0 ? fz->removals.overlay_fd : fz->uffd;
    int mode = fz->tracked ? OS_UFFD_WP : OS_UFFD_MISSING;
    int error = removals_start(fz);
    return error || fd < 0 ? error : os_uffd_register(fd, address, n, mode);
}

void freezer_watch_overlay(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int mode = fz->tracked && n >= fz->ops->tracked_run ? OS_UFFD_WP : OS_UFFD_MISSING;
    int fd = fz->removals.overlay_fd;
    for (int tries = 0; fd >= 0 && os_uffd_register(fd, address, n, mode) == -ENOMEM; tries++) {
        if (tries > RETRIES)
            return;
        os_sleep_us(50);
    }
}
