/*
 * Does the process hold what lets devices write into its memory behind the page
 * tables, with no thread waiting for it?  Rings of io_uring, but not those that
 * only tell an epoll what to wait for (os/rings.h), sockets whose packets lie in
 * the program's memory (AF_XDP), devices that pin memory (RDMA, GPUs and the
 * like, user-space drivers), and the rings of libaio.
 *
 * Whoever wants to use one must have it: as a descriptor, or, where a ring's
 * descriptor was closed (IORING_REGISTER_RING_FDS), mapped.  A ring of io_uring
 * that is neither, as the program has brought the memory for it, too
 * (IORING_SETUP_NO_MMAP), can be told only by the buffers that it has pinned.
 */
#include "os/devices.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "os/entries.h"
#include "os/files.h"
#include "os/proc_maps.h"
#include "os/rings.h"

#define OWN "/proc/thread-self/fd"
#define FIRST "/proc/self/fd"
#define RING "anon_inode:[io_uring]"
#define AIO_RING "/[aio]"
#define HARMLESS 16 /* rings at most are noted; libuv has one in each loop */

static bool lets_devices_write(const char *file)
{
    static const char *const known[] = {
        "/dev/infiniband/", "/dev/nvidia", "/dev/kfd", "/dev/dri/",   "/dev/dxg",
        "/dev/vfio/",       "/dev/accel",  "/dev/uio", "/dev/neuron", "/dev/davinci",
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strncmp(file, known[i], strlen(known[i])) == 0)
            return true;
    return false;
}

static bool is_packet_ring(const char *descriptor)
{
    int domain;
    socklen_t size = sizeof domain;
    int fd = (int)strtol(descriptor, NULL, 10);
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_XDP;
}

struct look {
    int files;
    bool own; /* are these the asking thread's? */
    bool all; /* and has the process no others? */
    uint64_t harmless[HARMLESS]; /* inodes of rings that only tell an epoll */
    size_t n;
};

/* Rings beyond those that can be noted count as any other. */
static bool note_harmless(struct look *look, const char *descriptor)
{
    struct stat file;
    if (look->n == HARMLESS || fstatat(look->files, descriptor, &file, 0) < 0)
        return false;
    look->harmless[look->n++] = file.st_ino;
    return true;
}

/*
 * The kind of a descriptor's file, as S_IFMT of inode(7) has it.  0: it has none, as rings and others without
 * a name, or nobody can tell.  To ask for its name in /proc takes seven times as long.  A file system that
 * would have to ask somebody else, who may be waiting for us, answers with what it knows.
 */
static unsigned kind_of(int fd)
{
    struct statx file;
    bool told = statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &file) == 0 &&
                (file.stx_mask & STATX_TYPE);
    return told ? file.stx_mode & S_IFMT : 0;
}

static bool is_device(const char *name, void *data)
{
    struct look *look = data;
    char file[64];
    unsigned kind = look->own ? kind_of((int)strtol(name, NULL, 10)) : 0;
    if (kind == S_IFREG || kind == S_IFDIR || kind == S_IFIFO)
        return false;
    if (kind == S_IFSOCK)
        return is_packet_ring(name);
    ssize_t length = readlinkat(look->files, name, file, sizeof file - 1);
    file[length > 0 ? length : 0] = 0;
    if (strcmp(file, RING) == 0)
        return !look->own || !os_ring_tells_epoll_only(name) || !note_harmless(look, name);
    if (strncmp(file, "socket:", strlen("socket:")) == 0)
        return look->own && is_packet_ring(name);
    return lets_devices_write(file);
}

/*
 * Has the thread that asks the same descriptors as the process's first one?  Not if either has called
 * unshare(CLONE_FILES), nor if the first one has ended.  files: one of the asking thread's.
 */
static bool are_the_first_ones(int files)
{
    char path[32];
    struct stat own, first;
    snprintf(path, sizeof path, FIRST "/%d", files);
    return fstat(files, &own) == 0 && stat(path, &first) == 0 && own.st_dev == first.st_dev &&
           own.st_ino == first.st_ino;
}

/* Looks over one list of descriptors: 1: one of them is a device's; 0: none is; or -errno. */
static int look_over(struct look *look, bool own)
{
    look->own = own;
    look->files = open(own ? OWN : FIRST, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (look->files < 0)
        return -errno;
    int found = os_each_entry(look->files, is_device, look);
    look->all = !own || are_the_first_ones(look->files);
    close(look->files);
    return found;
}

/* true also where the descriptors cannot be listed: then it may have one. */
static bool has_descriptor(struct look *look)
{
    return look_over(look, true) != 0 || (!look->all && look_over(look, false) != 0);
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
    static const char name[] = AIO_RING;
    /* The end of each piece is kept before the next one, as the name may be cut between them. */
    const size_t overlap = sizeof name - 2;
    char text[4096] = "";
    ssize_t got = 0;
    bool found = false;
    if (!machine_has_rings())
        return false;
    int maps = open("/proc/thread-self/maps", O_RDONLY | O_CLOEXEC);
    if (maps < 0)
        return true;
    while (!found && (got = read(maps, text + overlap, sizeof text - overlap)) > 0) {
        found = memmem(text, overlap + (size_t)got, name, sizeof name - 1) != NULL;
        memmove(text, text + got, overlap);
    }
    close(maps);
    return found || got < 0;
}

static bool is_mapped_ring(const char *path, uint64_t inode, void *data)
{
    const struct look *look = data;
    if (strcmp(path, RING) != 0)
        return strncmp(path, AIO_RING, strlen(AIO_RING)) == 0;
    for (size_t i = 0; i < look->n; i++)
        if (look->harmless[i] == inode)
            return false;
    return true;
}

/* Where the kernel does not tell mappings one by one, rings without descriptors are not looked for. */
static bool has_mapped_ring(struct look *look)
{
    int found = os_maps_each_shared(is_mapped_ring, look);
    return found < 0 ? has_ring() : found > 0;
}

/* What io_uring, RDMA and their like have pinned is counted for the process, in KiB. */
static bool has_pinned_memory(void)
{
    static const char name[] = "\nVmPin:";
    char text[8192]; /* the process's groups come first */
    os_read_text("/proc/thread-self/status", text, sizeof text);
    const char *at = strstr(text, name);
    return at && strtoul(at + strlen(name), NULL, 10) > 0;
}

bool os_has_device_files(void)
{
    struct look look = {0};
    return has_descriptor(&look) || has_pinned_memory();
}

/* Which of them are harmless is asked only where there are any. */
bool os_has_mapped_rings(void)
{
    struct look look = {0};
    return has_mapped_ring(&look) && (has_descriptor(&look) || has_mapped_ring(&look));
}

bool os_has_devices(void)
{
    return os_has_device_files() || os_has_mapped_rings();
}
