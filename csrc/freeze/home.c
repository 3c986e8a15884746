#include "freeze/home.h"

#include "base/pages.h"
#include "freeze/ops.h"
#include "os/uffd.h"

int freezer_home(const struct freezer *fz)
{
    return fz->uffd >= 0 ? fz->uffd : fz->wp_fd;
}

int freezer_register(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int mode = freezer_registration(fz);
    return mode ? os_uffd_register(freezer_home(fz), address, n, mode) : 0;
}

void freezer_change_what_can_be(struct freezer *fz, freezer_change *change, uintptr_t address,
                                uint64_t n)
{
    if (change(fz, address, n) == 0 || n == 1)
        return;
    freezer_change_what_can_be(fz, change, address, n / 2);
    freezer_change_what_can_be(fz, change, address + bytes_of(n / 2), n - n / 2);
}
