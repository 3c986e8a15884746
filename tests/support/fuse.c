/*
 * A file system of one file, whose reads go past the page cache and take their
 * time.
 *
 * The kernel takes hold of the reader's pages, and writes into them when the
 * answer comes, whatever is mapped there by then.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILE_NODE 2

static int device;
static char content[1 << 20], request[1 << 17];
static size_t length;

static void answer(const struct fuse_in_header *in, int error, void *with, size_t bytes)
{
    struct fuse_out_header head = {
        .len = (uint32_t)(sizeof head + bytes), .error = -error, .unique = in->unique};
    struct iovec parts[2] = {{&head, sizeof head}, {with, bytes}};
    if (writev(device, parts, bytes ? 2 : 1) < 0 && errno != ENOENT)
        perror("fuse: writev");
}

static struct fuse_attr attributes(uint64_t node)
{
    bool folder = node == FUSE_ROOT_ID;
    return (struct fuse_attr){.ino = node,
                              .mode = folder ? S_IFDIR | 0755 : S_IFREG | 0644,
                              .nlink = 1,
                              .size = folder ? 0 : length,
                              .blksize = 4096};
}

static void serve(const struct fuse_in_header *in, unsigned milliseconds)
{
    const void *argument = in + 1;
    if (in->opcode == FUSE_INIT) {
        struct fuse_init_out out = {.major = 7, .minor = 31, .max_write = 65536};
        answer(in, 0, &out, sizeof out);
    } else if (in->opcode == FUSE_LOOKUP) {
        struct fuse_entry_out out = {
            .nodeid = FILE_NODE, .attr_valid = 100, .attr = attributes(FILE_NODE)};
        answer(in, 0, &out, sizeof out);
    } else if (in->opcode == FUSE_GETATTR) {
        struct fuse_attr_out out = {.attr_valid = 100, .attr = attributes(in->nodeid)};
        answer(in, 0, &out, sizeof out);
    } else if (in->opcode == FUSE_OPEN) {
        struct fuse_open_out out = {.open_flags = FOPEN_DIRECT_IO};
        answer(in, 0, &out, sizeof out);
    } else if (in->opcode == FUSE_READ) {
        const struct fuse_read_in *read = argument;
        size_t rest = read->offset < length ? length - read->offset : 0;
        usleep(1000 * milliseconds);
        answer(in, 0, content + length - rest, read->size < rest ? read->size : rest);
    } else if (in->opcode == FUSE_RELEASE || in->opcode == FUSE_FLUSH) {
        answer(in, 0, NULL, 0);
    } else if (in->opcode != FUSE_FORGET && in->opcode != FUSE_BATCH_FORGET) {
        answer(in, ENOSYS, NULL, 0);
    }
}

/* Until the process is killed. The mount is this process's own: others find it below /proc/PID/root. */
int serve_slowly(const char *mountpoint, const char *path, int milliseconds)
{
    char options[100];
    int file = open(path, O_RDONLY);
    ssize_t got = read(file, content, sizeof content);
    device = open("/dev/fuse", O_RDWR);
    if (got < 0 || device < 0 || unshare(CLONE_NEWNS) < 0)
        return 1;
    length = (size_t)got;
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", device);
    if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("ksmpy", mountpoint, "fuse", 0, options) < 0)
        return 1;
    while ((got = read(device, request, sizeof request)) > 0 || errno == EINTR || errno == ENOENT)
        if (got > 0)
            serve((const struct fuse_in_header *)request, (unsigned)milliseconds);
    return 0;
}
