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

void freezer_change_what_can_be(freezer_change *change, int fd, uintptr_t address, uint64_t n)
{
    if (change(fd, address, n) == 0 || n == 1)
        return;
    freezer_change_what_can_be(change, fd, address, n / 2);
    freezer_change_what_can_be(change, fd, address + bytes_of(n / 2), n - n / 2);
}
