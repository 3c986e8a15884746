/*
 * How much memory this process may still take before somebody is killed for it.
 *
 * What binds is the least of what the machine has available and what each
 * memory cgroup above the process leaves, of version 1 and of version 2
 * (admin-guide/cgroup-v1/memory, admin-guide/cgroup-v2).  File pages can be
 * dropped, and swap takes what is not in use, so both count as left.
 */
#include "os/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/pages.h"
#include "os/apart.h"
#include "os/clock.h"
#include "os/files.h"
#include "os/map.h"

#define TEXT_BYTES ((size_t)256 << 10) /* for /proc/self/mountinfo, which can be that long */
#define LOOK_AGAIN_MS 1000 /* a process may be moved to another cgroup, but seldom is */
#define NO_LIMIT UINT64_MAX

static __thread bool crowded; /* a file could not be opened for want of a descriptor */

/* The beginning of a file, as text; its length, or -errno. */
static ssize_t read_text(const char *path, char *text, size_t size)
{
    size_t fill = 0;
    ssize_t got = 1;
    int fd = os_open_briefly(AT_FDCWD, path);
    text[0] = 0;
    if (fd < 0) {
        int error = -errno;
        crowded |= os_is_crowded(error);
        return error;
    }
    while (fill < size - 1 && got > 0 && os_is_brief(fd)) {
        got = read(fd, text + fill, size - 1 - fill);
        fill += got > 0 ? (size_t)got : 0;
    }
    os_close_brief(fd);
    text[fill] = 0;
    return (ssize_t)fill;
}

static uint64_t add(uint64_t a, uint64_t b)
{
    return a > NO_LIMIT - b ? NO_LIMIT : a + b;
}

static uint64_t beyond(uint64_t limit, uint64_t used)
{
    return limit > used ? limit - used : 0;
}

/* ---- which cgroups ---- */

enum version { V1, V2, VERSIONS };

static enum version version_of(const char *kind)
{
    return strcmp(kind, "cgroup2") == 0 ? V2 : strcmp(kind, "cgroup") == 0 ? V1 : VERSIONS;
}

/* Is it one of the words, which are separated by commas? */
static bool has_word(const char *words, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = words; (at = strstr(at, word)); at += length)
        if ((at == words || at[-1] == ',') && (!at[length] || at[length] == ','))
            return true;
    return false;
}

struct mount {
    char root[OS_CGROUP_PATH], point[OS_CGROUP_PATH];
};

/* A line of /proc/self/mountinfo (proc_pid_mountinfo(5)): id, parent, device, root, point, ... */
static void see_mount(const char *line, struct mount *mounts)
{
    struct mount found;
    char kind[16], options[256];
    const char *rest = strstr(line, " - ");
    if (!rest || sscanf(line, "%*s %*s %*s %255s %255s", found.root, found.point) != 2 ||
        sscanf(rest + 3, "%15s %*s %255s", kind, options) != 2)
        return;
    enum version version = version_of(kind);
    if (version != VERSIONS && (version == V2 || has_word(options, "memory")))
        mounts[version] = found;
}

/* A line of /proc/self/cgroup (cgroups(7)): number, controllers, path. */
static void see_cgroup(char *line, char (*paths)[OS_CGROUP_PATH])
{
    char *words = strchr(line, ':');
    char *path = words ? strchr(++words, ':') : NULL;
    if (!path)
        return;
    *path++ = 0;
    if (!*words || has_word(words, "memory"))
        snprintf(paths[*words ? V1 : V2], OS_CGROUP_PATH, "%s", path);
}

/*
 * Notes the directory of the process's cgroup.  In a container only a part of the cgroup tree may
 * be mounted.  If the process's cgroup does not lie in that part, the mount point is taken.
 */
static void locate(struct os_memory *memory, int version, const struct mount *mount,
                   const char *path)
{
    size_t length = strcmp(mount->root, "/") ? strlen(mount->root) : 0;
    bool inside = strncmp(path, mount->root, length) == 0 && !strstr(path, "/..");
    memory->top[version] = strlen(mount->point);
    int size = snprintf(memory->path[version], sizeof memory->path[version], "%s%s", mount->point,
                        inside && strcmp(path, "/") ? path + length : "");
    if (!mount->point[0] || size >= (int)sizeof memory->path[version])
        memory->path[version][0] = 0;
}

static void each_line(char *text, struct mount *mounts, char (*paths)[OS_CGROUP_PATH])
{
    char *next;
    for (char *line = text; line && *line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        if (mounts)
            see_mount(line, mounts);
        else
            see_cgroup(line, paths);
    }
}

/* If /proc cannot be read, as after chroot(), the cgroups found before are kept. */
static void find_cgroups(struct os_memory *memory, char *text)
{
    struct mount mounts[VERSIONS] = {0};
    char paths[VERSIONS][OS_CGROUP_PATH] = {"", ""};
    if (read_text("/proc/self/mountinfo", text, TEXT_BYTES) <= 0)
        return;
    each_line(text, mounts, NULL);
    if (read_text("/proc/self/cgroup", text, TEXT_BYTES) > 0)
        each_line(text, NULL, paths);
    for (int version = 0; version < VERSIONS; version++)
        locate(memory, version, &mounts[version], paths[version]);
}

/* ---- what they leave ---- */

/* The value in the line "name value" or "name: value kB" of a text; otherwise if there is none. */
static uint64_t field(const char *text, const char *name, uint64_t otherwise)
{
    size_t length = strlen(name);
    for (const char *at = text; at; at = strchr(at, '\n')) {
        at += *at == '\n';
        if (strncmp(at, name, length) == 0 && strchr(": ", at[length]))
            return strtoull(at + length + 1, NULL, 10);
    }
    return otherwise;
}

struct cgroup {
    const char *path;
    char *text;
};

/* The number in a file of a cgroup; otherwise if there is no such file, or it says "max". */
static uint64_t number(const struct cgroup *group, const char *file, uint64_t otherwise)
{
    char path[OS_CGROUP_PATH + 64], text[32], *end;
    snprintf(path, sizeof path, "%s/%s", group->path, file);
    if (read_text(path, text, sizeof text) <= 0)
        return otherwise;
    uint64_t value = strtoull(text, &end, 10);
    return end == text ? otherwise : value;
}

/* Bytes of page cache, which the kernel drops when the cgroup is full; tmpfs does not count. */
static uint64_t droppable(const struct cgroup *group, const char *prefix)
{
    char path[OS_CGROUP_PATH + 64], name[32];
    uint64_t bytes = 0;
    snprintf(path, sizeof path, "%s/memory.stat", group->path);
    if (read_text(path, group->text, TEXT_BYTES) <= 0)
        return 0;
    for (int active = 0; active < 2; active++) {
        snprintf(name, sizeof name, "%s%s", prefix, active ? "active_file" : "inactive_file");
        bytes += field(group->text, name, 0);
    }
    return bytes;
}

static uint64_t left_v1(const struct cgroup *group, uint64_t swap)
{
    uint64_t limit = number(group, "memory.limit_in_bytes", NO_LIMIT);
    uint64_t both = number(group, "memory.memsw.limit_in_bytes", NO_LIMIT);
    if (limit > INT64_MAX / 2 && both > INT64_MAX / 2)
        return NO_LIMIT;
    uint64_t files = droppable(group, "total_");
    uint64_t used = number(group, "memory.usage_in_bytes", 0);
    uint64_t used_both = number(group, "memory.memsw.usage_in_bytes", 0);
    if (!number(group, "memory.swappiness", 1))
        swap = 0;
    return least(add(beyond(add(limit, files), used), swap), beyond(add(both, files), used_both));
}

/*
 * memory.high counts as a limit like memory.max: above it nobody is killed, but the kernel slows
 * every process of the cgroup down until hardly anything goes on.
 */
static uint64_t left_v2(const struct cgroup *group, uint64_t swap)
{
    uint64_t limit =
        least(number(group, "memory.max", NO_LIMIT), number(group, "memory.high", NO_LIMIT));
    if (limit == NO_LIMIT)
        return NO_LIMIT;
    uint64_t may_swap =
        beyond(number(group, "memory.swap.max", NO_LIMIT), number(group, "memory.swap.current", 0));
    uint64_t used = number(group, "memory.current", 0);
    return add(beyond(add(limit, droppable(group, "")), used), least(swap, may_swap));
}

static void see_left(uint64_t left, const char *who, uint64_t *least_left, char *which, size_t size)
{
    if (left >= *least_left)
        return;
    *least_left = left;
    if (which)
        snprintf(which, size, "%s", who);
}

/* Asks a cgroup and all above it, up to the mount point. */
static void ask_cgroups(const struct os_memory *memory, int version, uint64_t swap, uint64_t *left,
                        char *which, size_t size)
{
    char path[OS_CGROUP_PATH];
    struct cgroup group = {.path = path, .text = memory->text};
    strcpy(path, memory->path[version]);
    while (path[0]) {
        see_left(version == V1 ? left_v1(&group, swap) : left_v2(&group, swap), path, left, which,
                 size);
        char *last = strrchr(path, '/');
        if (!last || (size_t)(last - path) < memory->top[version])
            return;
        *last = 0;
    }
}

int os_memory_open(struct os_memory *memory)
{
    *memory = (struct os_memory){.text = os_alloc(TEXT_BYTES)};
    return memory->text ? 0 : -ENOMEM;
}

void os_memory_close(struct os_memory *memory)
{
    os_unmap(memory->text, TEXT_BYTES);
    memory->text = NULL;
}

static uint64_t look(struct os_memory *memory, char *which, size_t size)
{
    uint64_t left = NO_LIMIT, now = os_now_ms();
    char *text = memory->text;
    if (which)
        which[0] = 0;
    if (!memory->looked_ms || now - memory->looked_ms >= LOOK_AGAIN_MS) {
        find_cgroups(memory, text);
        memory->looked_ms = now;
    }
    uint64_t swap = 0;
    if (read_text("/proc/meminfo", text, TEXT_BYTES) > 0) {
        swap = field(text, "SwapFree", 0) << 10;
        uint64_t available = field(text, "MemAvailable", NO_LIMIT >> 10) << 10;
        see_left(add(available, swap), "the machine", &left, which, size);
    }
    for (int version = 0; version < VERSIONS; version++)
        ask_cgroups(memory, version, swap, &left, which, size);
    return left >> PAGE_SHIFT;
}

struct question {
    struct os_memory *memory;
    char *which;
    size_t size;
    uint64_t left;
};

static int answer(void *data, bool apart)
{
    struct question *question = data;
    (void)apart;
    crowded = false;
    question->left = look(question->memory, question->which, question->size);
    if (crowded)
        question->memory->looked_ms = 0; /* it is not known which cgroups there are */
    return crowded ? -EMFILE : 0;
}

uint64_t os_memory_left(struct os_memory *memory, char *which, size_t size)
{
    struct question question = {memory, which, size, 0};
    os_ask(answer, &question);
    return question.left;
}

uint64_t os_memory_pages(void)
{
    long pages = sysconf(_SC_PHYS_PAGES);
    return pages > 0 ? (uint64_t)pages : (uint64_t)1 << 20;
}
