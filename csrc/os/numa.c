/* Where pages are, and where new ones go. The system calls need no libnuma. */
#include "os/numa.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/pages.h"

#define MPOL_PREFERRED 1
#define BATCH 256 /* pages asked about in one call: their addresses take 2 KiB of the stack */

int os_nodes(uintptr_t address, uint64_t n, int *nodes)
{
    void *pages[BATCH];
    while (n) {
        uint64_t part = least(n, BATCH);
        for (uint64_t i = 0; i < part; i++)
            pages[i] = page_at(address, i);
        if (syscall(SYS_move_pages, 0, part, pages, NULL, nodes, 0) < 0)
            return -errno;
        address += bytes_of(part);
        nodes += part;
        n -= part;
    }
    return 0;
}

int os_bind(void *address, size_t bytes, int node)
{
    unsigned long mask[16] = {0};
    unsigned bits = 8 * sizeof mask[0];
    mask[(unsigned)node / bits] = 1ul << ((unsigned)node % bits);
    long result = syscall(SYS_mbind, address, bytes, MPOL_PREFERRED, mask,
                          (unsigned long)(8 * sizeof mask), 0);
    return result < 0 ? -errno : 0;
}
