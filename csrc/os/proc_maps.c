/* /proc/self/maps: one mapping at a time where the kernel can (PROCMAP_QUERY), else as text. */
#include "os/proc_maps.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "os/files.h"
#include "os/map.h"

#define BUFFER_BYTES ((size_t)64 << 10)

/* struct procmap_query of linux/fs.h (6.11) */
struct query {
    uint64_t size, flags, address;
    uint64_t vma_start, vma_end, vma_flags, page_size, offset, inode;
    uint32_t dev_major, dev_minor;
    uint32_t name_size, build_id_size;
    uint64_t name_address, build_id_address;
};
#define QUERY_IOCTL _IOWR('f', 17, struct query)
#define QUERY_READABLE 1
#define QUERY_WRITABLE 2
#define QUERY_EXECUTABLE 4
#define QUERY_SHARED 8
#define QUERY_COVERING_OR_NEXT 16
#define QUERY_FILE 32

static int find_by_query(struct os_maps *maps, uintptr_t address, struct os_vma *out)
{
    struct query query = {
        .size = sizeof query, .flags = QUERY_COVERING_OR_NEXT, .address = address};
    if (ioctl(maps->fd, QUERY_IOCTL, &query) < 0)
        return errno == ENOENT ? 0 : -errno;
    uint64_t access =
        query.vma_flags & (QUERY_READABLE | QUERY_WRITABLE | QUERY_EXECUTABLE | QUERY_SHARED);
    *out = (struct os_vma){
        .start = query.vma_start,
        .end = query.vma_end,
        .inode = query.inode,
        .dev = makedev(query.dev_major, query.dev_minor),
        .offset = query.offset,
        .shared = access & QUERY_SHARED,
        .private_rw = access == (QUERY_READABLE | QUERY_WRITABLE),
        .private_ro = access == QUERY_READABLE,
    };
    return 1;
}

/* The program may have closed it, and opened a file that has its number now. */
static bool is_ours(const struct os_maps *maps)
{
    return maps->fd >= 0 && os_is_file(maps->fd, maps->inode);
}

/* More of the text: 1, 0 at its end, or -errno. */
static int refill(struct os_maps *maps)
{
    if (maps->at < maps->fill)
        memmove(maps->buffer, maps->buffer + maps->at, maps->fill - maps->at);
    maps->fill -= maps->at;
    maps->at = 0;
    if (!maps->buffer && !(maps->buffer = os_alloc(BUFFER_BYTES)))
        return -ENOMEM;
    if (!is_ours(maps))
        return -EBADF;
    ssize_t got = read(maps->fd, maps->buffer + maps->fill, BUFFER_BYTES - 1 - maps->fill);
    if (got < 0)
        return -errno;
    maps->fill += (size_t)got;
    return got > 0;
}

/* The next line of the text: 1, 0 at the end, or -errno; a line is at most a path long. */
static int next_line(struct os_maps *maps, char **line)
{
    char *end;
    while (maps->at == maps->fill ||
           !(end = memchr(maps->buffer + maps->at, '\n', maps->fill - maps->at))) {
        int more = refill(maps);
        if (more <= 0)
            return more;
    }
    *line = maps->buffer + maps->at;
    *end = 0;
    maps->at = (size_t)(end - maps->buffer) + 1;
    return 1;
}

static void rewind_text(struct os_maps *maps)
{
    if (is_ours(maps))
        lseek(maps->fd, 0, SEEK_SET);
    maps->fill = maps->at = 0;
    maps->last = (struct os_vma){0};
}

static void parse(char *line, struct os_vma *out)
{
    char *p;
    out->start = strtoul(line, &p, 16);
    out->end = strtoul(p + 1, &p, 16);
    const char *access = p + 1;
    out->offset = strtoul(p + 6, &p, 16);
    unsigned long major_number = strtoul(p, &p, 16);
    unsigned long minor_number = strtoul(p + 1, &p, 16);
    out->dev = makedev(major_number, minor_number);
    out->inode = strtoul(p, NULL, 10);
    out->private_rw = strncmp(access, "rw-p", 4) == 0;
    out->private_ro = strncmp(access, "r--p", 4) == 0;
    out->shared = access[3] == 's';
}

/* Reads on from the last answer while addresses ascend, which is how every caller asks. */
static int find_in_text(struct os_maps *maps, uintptr_t address, struct os_vma *out)
{
    if (address < maps->last.start)
        rewind_text(maps);
    else if (maps->last.end > address) {
        *out = maps->last;
        return 1;
    }
    char *line;
    int found;
    while ((found = next_line(maps, &line)) > 0) {
        parse(line, out);
        maps->last = *out;
        if (out->end > address)
            return 1;
    }
    return found;
}

int os_maps_open_anywhere(struct os_maps *maps)
{
    *maps = (struct os_maps){.fd = open("/proc/thread-self/maps", O_RDONLY | O_CLOEXEC)};
    if (maps->fd < 0)
        return -errno;
    struct os_vma vma;
    uint64_t dev;
    maps->query = find_by_query(maps, 0, &vma) >= 0;
    return os_know_file(maps->fd, &maps->inode, &dev);
}

int os_maps_open(struct os_maps *maps)
{
    int error = os_maps_open_anywhere(maps);
    if (error)
        return error;
    maps->fd = os_keep_off_standard(maps->fd);
    return maps->fd < 0 ? maps->fd : 0;
}

void os_maps_close(struct os_maps *maps)
{
    os_unmap(maps->buffer, BUFFER_BYTES);
    maps->buffer = NULL;
    if (is_ours(maps))
        close(maps->fd);
    maps->fd = -1;
}

int os_maps_find(struct os_maps *maps, uintptr_t address, struct os_vma *out)
{
    return maps->query ? find_by_query(maps, address, out) : find_in_text(maps, address, out);
}

int64_t os_maps_count(struct os_maps *maps)
{
    int64_t count = 0;
    char *line;
    int found;
    rewind_text(maps);
    while ((found = next_line(maps, &line)) > 0)
        count++;
    rewind_text(maps);
    return found < 0 ? found : count;
}

int64_t os_mappings(void)
{
    char text[4096];
    int64_t count = 0;
    ssize_t got = 1;
    int fd = os_open_briefly(AT_FDCWD, "/proc/thread-self/maps");
    if (fd < 0)
        return -errno;
    while (os_is_brief(fd) && (got = read(fd, text, sizeof text)) > 0)
        for (const char *at = text, *end = text + got;
             (at = memchr(at, '\n', (size_t)(end - at))) != NULL; at++)
            count++;
    int error = got > 0 ? -EBADF : got < 0 ? -errno : 0;
    os_close_brief(fd);
    return error ? error : count;
}

int os_maps_each_shared(os_visit_shared *visit, void *data)
{
    char path[PATH_MAX];
    struct query query = {0};
    bool found = false;
    int fd = os_open_briefly(AT_FDCWD, "/proc/thread-self/maps");
    if (fd < 0)
        return -errno;
    while (!found) {
        query = (struct query){
            .size = sizeof query,
            .flags = QUERY_COVERING_OR_NEXT | QUERY_SHARED | QUERY_FILE,
            .address = query.vma_end,
            .name_size = sizeof path,
            .name_address = (uintptr_t)path,
        };
        if (ioctl(fd, QUERY_IOCTL, &query) < 0)
            break;
        found = query.name_size && visit(path, query.inode, data);
    }
    int error = found || errno == ENOENT ? 0 : -errno;
    os_close_brief(fd);
    return error ? error : found;
}

void os_maps_refresh(struct os_maps *maps)
{
    if (!maps->query)
        rewind_text(maps);
}

uint64_t os_max_map_count(void)
{
    char text[32];
    os_read_text("/proc/sys/vm/max_map_count", text, sizeof text);
    return text[0] ? strtoul(text, NULL, 10) : 65530; /* the kernel's default */
}
