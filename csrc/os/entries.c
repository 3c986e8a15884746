#include "os/entries.h"

#include <errno.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

struct entry { /* struct linux_dirent64 */
    uint64_t inode;
    int64_t next;
    uint16_t length;
    uint8_t type;
    char name[];
};

int os_each_entry(int fd, os_visit *visit, void *data)
{
    _Alignas(struct entry) char buffer[4096];
    long got;
    lseek(fd, 0, SEEK_SET); /* the descriptor is used again and again */
    while ((got = syscall(SYS_getdents64, fd, buffer, sizeof buffer)) > 0)
        for (long at = 0; at < got;) {
            const struct entry *entry = (const struct entry *)(buffer + at);
            at += entry->length;
            if (entry->name[0] != '.' && visit(entry->name, data))
                return 1;
        }
    return got < 0 ? -errno : 0;
}
