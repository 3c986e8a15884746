#include "os/lease.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <unistd.h>

#include "base/pages.h"
#include "os/apart.h"
#include "os/files.h"
#include "os/map.h"
#include "os/unhooked.h"

struct wish {
    int lease_fd;
    uint64_t number;
    void *lease;
};

/*
 * An open-file-description lock goes when the last reference to the
 * description goes, and a mapping is such a reference: a child that closes
 * every descriptor still holds it until it exits or calls exec.  The description belongs to no table
 * of descriptors, so it may be made apart; there the only free number is a standard one.
 */
static int take(void *data, bool apart)
{
    struct wish *wish = data;
    int fd = apart ? os_reopen_anywhere(wish->lease_fd, O_RDWR) : os_reopen(wish->lease_fd, O_RDWR);
    if (fd < 0)
        return fd;
    int error = os_try_lock(fd, wish->number, true);
    void *got = error ? MAP_FAILED : os_mmap(NULL, PAGE_SIZE, PROT_NONE, MAP_SHARED, fd, 0);
    close(fd);
    wish->lease = got == MAP_FAILED ? NULL : got;
    return error ? error : wish->lease ? 0 : -ENOMEM;
}

int os_lease_take(int lease_fd, uint64_t number, void **lease)
{
    struct wish wish = {.lease_fd = lease_fd, .number = number};
    int error = os_ask(take, &wish);
    *lease = wish.lease;
    return error;
}

void os_lease_drop(void *lease)
{
    os_unmap(lease, PAGE_SIZE);
}

bool os_lease_held(int lease_fd, uint64_t number)
{
    struct flock lock = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)number, .l_len = 1};
    if (fcntl(lease_fd, F_OFD_GETLK, &lock) < 0)
        return true;
    return lock.l_type != F_UNLCK;
}
