/* Finds out what the kernel offers by trying it on pages of our own. */
#include "os/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/pages.h"
#include "ksmpy.h"
#include "os/files.h"
#include "os/folios.h"
#include "os/map.h"
#include "os/pagemap.h"
#include "os/uffd.h"
#include "os/write_tracking.h"

#define TRIAL_PAGES 2

static bool probe_uffd(int features)
{
    int fd = os_uffd_open(features);
    if (fd < 0)
        return false;
    close(fd);
    return true;
}

static bool try_move(int fd, uint8_t *memory)
{
    uintptr_t from = (uintptr_t)memory, to = from + bytes_of(1);
    memory[0] = 1;
    return os_drop(to, 1) == 0 && os_uffd_register(fd, to, 1, OS_UFFD_MISSING) == 0 &&
           os_uffd_move(fd, to, from, 1) == 1;
}

static bool probe_move(void)
{
    int fd = os_uffd_open(OS_UFFD_MOVE);
    if (fd < 0)
        return false;
    uint8_t *memory = os_alloc(bytes_of(TRIAL_PAGES));
    bool works = memory && try_move(fd, memory);
    close(fd);
    os_unmap(memory, bytes_of(TRIAL_PAGES));
    return works;
}

static bool try_written(int pagemap_fd, int fd, uint8_t *memory)
{
    struct os_range range[2];
    uintptr_t address = (uintptr_t)memory, next;
    memory[0] = 1;
    if (os_uffd_register(fd, address, 1, OS_UFFD_WP) < 0)
        return false;
    if (os_arm_written(pagemap_fd, address, 1, range, 2, &next) != 1)
        return false;
    if (os_arm_written(pagemap_fd, address, 1, range, 2, &next) != 0)
        return false;
    *(volatile uint8_t *)memory = 2;
    return os_arm_written(pagemap_fd, address, 1, range, 2, &next) == 1;
}

static bool probe_written(void)
{
    bool works = false;
    int fd = os_uffd_open(OS_UFFD_WP_ASYNC);
    int pagemap_fd = open("/proc/thread-self/pagemap", O_RDONLY | O_CLOEXEC);
    uint8_t *memory = os_alloc(bytes_of(1));
    if (fd >= 0 && pagemap_fd >= 0 && memory)
        works = try_written(pagemap_fd, fd, memory);
    if (fd >= 0)
        close(fd);
    if (pagemap_fd >= 0)
        close(pagemap_fd);
    os_unmap(memory, bytes_of(1));
    return works;
}

static bool probe_mapping(bool (*trial)(uint8_t *memory))
{
    uint8_t *memory = os_alloc(bytes_of(TRIAL_PAGES));
    bool works = memory && trial(memory);
    os_unmap(memory, bytes_of(TRIAL_PAGES));
    return works;
}

static bool try_dontunmap(uint8_t *memory)
{
    memory[0] = 1;
    uintptr_t from = (uintptr_t)memory;
    return os_remap(from + bytes_of(1), from, 1, true) == 0 && memory[PAGE_SIZE] == 1;
}

static bool try_populate(uint8_t *memory)
{
    return os_populate((uintptr_t)memory, TRIAL_PAGES, true) == 0;
}

static bool probe_memfd(void)
{
    int fd = os_memfd("ksmpy-probe", PAGE_SIZE);
    int readable = fd < 0 ? fd : os_seal(fd);
    if (fd >= 0)
        close(fd);
    if (readable >= 0)
        close(readable);
    return readable >= 0;
}

void os_probe(struct ksmpy_caps *caps)
{
    memset(caps, 0, sizeof *caps);
    int fd = os_uffd_open(0);
    caps->uffd = fd >= 0;
    caps->uffd_errno = fd >= 0 ? 0 : -fd;
    caps->uffd_kernel_mode = fd >= 0 && os_uffd_handles_calls();
    if (fd >= 0) {
        close(fd);
        caps->uffd_move = probe_move();
        caps->uffd_wp_async = probe_written();
        caps->uffd_wp_shmem = probe_uffd(OS_UFFD_WP_SYNC);
    }
    caps->pagemap_scan = caps->uffd_wp_async;
    caps->mremap_dontunmap = probe_mapping(try_dontunmap);
    caps->madv_populate = probe_mapping(try_populate);
    caps->memfd = probe_memfd();
}

int os_try_huge_file(void)
{
    size_t size = bytes_of(HUGE_PAGES);
    int fd = os_memfd("ksmpy-probe", size);
    if (fd < 0)
        return fd;
    void *view = os_map_hidden(fd, 0, size);
    int error = -ENOMEM;
    if (view) {
        os_put(fd, 0, "", 1);
        error = os_protect((uintptr_t)view, HUGE_PAGES, false);
        error = error ? error : os_collapse((uintptr_t)view, HUGE_PAGES);
        error = error || os_file_is_huge(fd, 0, 0) == 1 ? error : -EOPNOTSUPP;
    }
    os_unmap(view, size);
    close(fd);
    return error;
}
