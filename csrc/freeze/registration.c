#include "freeze/registration.h"

#include <errno.h>

#include "freeze/ops.h"
#include "os/map.h"
#include "os/uffd.h"

static int region_fd(const struct freezer *fz)
{
    return fz->uffd >= 0 ? fz->uffd : fz->wp_fd;
}

int freezer_attach(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int mode = freezer_registration(fz);
    int error = fz->ops->fills_holes ? os_populate(address, n, false) : 0;
    if (error && error != -EINVAL) /* EINVAL: before Linux 5.14; the fault thread fills holes */
        return error;
    return mode ? os_uffd_register(region_fd(fz), address, n, mode) : 0;
}

uint64_t freezer_mappings(const struct freezer *fz)
{
    return freezer_registration(fz) ? 2 : 0;
}

int freezer_detach(struct freezer *fz, uintptr_t address, uint64_t n)
{
    return region_fd(fz) >= 0 ? os_uffd_unregister(region_fd(fz), address, n) : 0;
}

int freezer_track_overlay(struct freezer *fz, uintptr_t address, uint64_t n)
{
    return fz->tracked ? os_uffd_register(fz->uffd, address, n, freezer_registration(fz)) : 0;
}
