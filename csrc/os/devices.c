/*
 * Does the process hold what lets devices write into its memory behind the page
 * tables, with no thread waiting for it?  Descriptors of io_uring, but not
 * those that only tell an epoll what to wait for (os/rings.h), of devices that
 * pin memory (RDMA, GPUs, user-space drivers), and the rings of libaio.
 * Whoever wants to use one must have it, so none means no such write.
 */
#include "os/devices.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "os/entries.h"
#include "os/rings.h"

static bool lets_devices_write(const char *file)
{
    static const char *const known[] = {
        "/dev/infiniband/", "/dev/nvidia", "/dev/kfd", "/dev/dri/",
        "/dev/vfio/",       "/dev/accel/", "/dev/uio",
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strncmp(file, known[i], strlen(known[i])) == 0)
            return true;
    return false;
}

static bool is_device(const char *name, void *files)
{
    char file[64];
    ssize_t length = readlinkat(*(int *)files, name, file, sizeof file - 1);
    file[length > 0 ? length : 0] = 0;
    if (strcmp(file, "anon_inode:[io_uring]") == 0)
        return !os_ring_tells_epoll_only(name);
    return lets_devices_write(file);
}

/* true also where the descriptors cannot be listed: then it may have one. */
static bool has_descriptor(void)
{
    int files = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (files < 0)
        return true;
    int found = os_each_entry(files, is_device, &files);
    close(files);
    return found != 0;
}

/*
 * Has any process of this machine a ring of libaio?  Without one this process has none, and the
 * text of its mappings need not be read.
 */
static bool machine_has_rings(void)
{
    char text[32] = "";
    int fd = open("/proc/sys/fs/aio-nr", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno != ENOENT; /* ENOENT: the kernel was built without libaio's calls */
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    return got > 0 && strtoul(text, NULL, 10) > 0;
}

/* The kernel maps a ring from a file that it calls "/[aio]".  true also where nobody can tell. */
static bool has_ring(void)
{
    static const char name[] = "/[aio]";
    /* The end of each piece is kept before the next one, as the name may be cut between them. */
    const size_t overlap = sizeof name - 2;
    char text[4096] = "";
    ssize_t got = 0;
    bool found = false;
    if (!machine_has_rings())
        return false;
    int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (maps < 0)
        return true;
    while (!found && (got = read(maps, text + overlap, sizeof text - overlap)) > 0) {
        found = memmem(text, overlap + (size_t)got, name, sizeof name - 1) != NULL;
        memmove(text, text + got, overlap);
    }
    close(maps);
    return found || got < 0;
}

bool os_has_devices(void)
{
    return has_descriptor() || has_ring();
}
