#include "os/folios.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/pages.h"
#include "os/files.h"
#include "os/map.h"
#include "os/pagemap.h"

/* In a mapping that nobody has touched, so that no table of small entries is there already. */
int os_file_is_huge(int fd, uint64_t offset, uint64_t page)
{
    uint64_t bytes = bytes_of(HUGE_PAGES);
    int pagemap = open("/proc/thread-self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pagemap < 0)
        return -errno;
    void *view = os_map_hidden(fd, offset, bytes);
    uintptr_t address = (uintptr_t)view;
    int error = view ? os_protect(address, HUGE_PAGES, false) : -ENOMEM;
    if (!error)
        error = os_populate(address + bytes_of(page), 1, false);
    int is = error ? error : os_is_in_huge(pagemap, address + bytes_of(page));
    if (!is && prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) != 0)
        is = -EPERM;
    os_unmap(view, bytes);
    close(pagemap);
    return is;
}

#define SETTINGS "/sys/kernel/mm/transparent_hugepage/"

static bool says(const char *path, const char *const *words)
{
    char text[128];
    os_read_text(path, text, sizeof text);
    while (*words && !strstr(text, *words))
        words++;
    return *words;
}

static bool memfds_get_them(void)
{
    static const char *const yes[] = {"[always]", "[within_size]", "[advise]", NULL};
    bool get = says(SETTINGS "shmem_enabled", yes);
    glob_t sizes = {0};
    if (!get && glob(SETTINGS "hugepages-*/shmem_enabled", 0, NULL, &sizes) == 0)
        for (size_t i = 0; i < sizes.gl_pathc && !get; i++)
            get = says(sizes.gl_pathv[i], yes);
    globfree(&sizes);
    return get;
}

/* The same for what was made by a path, on a mount.  One that is not to be seen may say so. */
static bool mount_gives_them(dev_t device)
{
    bool gives = true;
    unsigned major_of, minor_of;
    char *line = NULL;
    size_t size = 0;
    FILE *mounts = fopen("/proc/self/mountinfo", "re");
    while (mounts && getline(&line, &size, mounts) > 0) {
        const char *options = strstr(line, " - ");
        if (sscanf(line, "%*d %*d %u:%u", &major_of, &minor_of) != 2 || !options ||
            makedev(major_of, minor_of) != device)
            continue;
        const char *huge = strstr(options, "huge=");
        gives = huge && strncmp(huge, "huge=never", strlen("huge=never")) != 0;
        break;
    }
    free(line);
    if (mounts)
        fclose(mounts);
    return gives;
}

static bool is_memfd(int fd)
{
    static const char is[] = "/memfd:";
    char path[32], name[sizeof is];
    snprintf(path, sizeof path, "/proc/thread-self/fd/%d", fd);
    ssize_t length = readlink(path, name, sizeof name);
    return length == sizeof name && !memcmp(name, is, sizeof is - 1);
}

/* A file that has no name any more is treated like a memfd where it is mapped. */
bool os_file_gets_large_folios(int fd)
{
    static const char *const force[] = {"[force]", NULL};
    struct stat info;
    if (fstat(fd, &info) < 0 || says(SETTINGS "shmem_enabled", force))
        return true;
    bool memfd = is_memfd(fd);
    return ((memfd || info.st_nlink == 0) && memfds_get_them()) ||
           (!memfd && mount_gives_them(info.st_dev));
}
