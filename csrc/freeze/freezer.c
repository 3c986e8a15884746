/* Freezing: what the ways of it have in common. */
#include "freeze/freezer.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/pages.h"
#include "ksmpy.h"
#include "os/direct_io.h"
#include "os/files.h"
#include "os/guard.h"
#include "os/map.h"
#include "os/pagemap.h"
#include "os/uffd.h"

/* How much of a stack is in use below and above a frame of ours, at most. */
#define STACK_BELOW ((uintptr_t)128 << 10)
#define STACK_ABOVE ((uintptr_t)64 << 10)
#define THREAD_BYTES ((uintptr_t)2304) /* of what pthread_self() points to */

static const struct freezer_ops *const ways[] = {
    [KSMPY_FREEZE_UFFD_MOVE] = &freeze_by_uffd,
    [KSMPY_FREEZE_UFFD_REMAP] = &freeze_by_uffd,
    [KSMPY_FREEZE_SIGNAL] = &freeze_by_signal,
    [KSMPY_FREEZE_UFFD_WP] = &freeze_by_protection,
};

static void forget(struct freezer *fz)
{
    fz->uffd = fz->wp_fd = fz->stop_fd = fz->pagemap_fd = fz->tasks_fd = -1;
    fz->slot = -1;
    fz->helped = false;
}

static int file_of(const struct freezer *fz, int i)
{
    const int files[FREEZER_FILES] = {fz->uffd, fz->wp_fd, fz->stop_fd, fz->pagemap_fd,
                                      fz->tasks_fd};
    return files[i];
}

static void know_files(struct freezer *fz)
{
    uint64_t dev;
    for (int i = 0; i < FREEZER_FILES; i++)
        if (file_of(fz, i) >= 0)
            os_know_file(file_of(fz, i), &fz->inodes[i], &dev);
}

static bool has_file(const struct freezer *fz, int i)
{
    int fd = file_of(fz, i);
    return fd >= 0 && (!fz->inodes[i] || os_is_file(fd, fz->inodes[i]));
}

bool freezer_has(const struct freezer *fz, int fd)
{
    for (int i = 0; i < FREEZER_FILES; i++)
        if (file_of(fz, i) == fd)
            return has_file(fz, i);
    return false;
}

bool freezer_has_files(const struct freezer *fz)
{
    for (int i = 0; i < FREEZER_FILES; i++)
        if (file_of(fz, i) >= 0 && !has_file(fz, i))
            return false;
    return true;
}

static void close_all(struct freezer *fz)
{
    for (int i = 0; i < FREEZER_FILES; i++)
        if (has_file(fz, i))
            close(file_of(fz, i));
    forget(fz);
}

static void unmap_all(struct freezer *fz)
{
    os_unmap((void *)fz->windows[0], bytes_of(FREEZE_MAX));
    os_unmap((void *)fz->windows[1], bytes_of(FREEZE_HUGE));
    stage_close(fz);
    os_unmap(fz->zeros, PAGE_SIZE);
}

int freezer_init(struct freezer *fz, int mode, bool tracked)
{
    memset(fz, 0, sizeof *fz);
    forget(fz);
    fz->mode = mode;
    fz->ops = ways[mode];
    fz->tracked = tracked;
    pthread_mutex_init(&fz->lock, NULL);
    fz->stage = (uintptr_t)os_alloc(bytes_of(FREEZE_MAX));
    fz->zeros = os_alloc(PAGE_SIZE);
    fz->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    int no_pagemap = -errno;
    fz->tasks_fd = os_tasks_open();
    int error = fz->pagemap_fd < 0         ? no_pagemap
                : fz->tasks_fd < 0         ? fz->tasks_fd
                : !fz->stage || !fz->zeros ? -ENOMEM
                                           : 0;
    if (!error)
        error = fz->ops->init(fz);
    know_files(fz);
    if (!error && fz->ops->start)
        error = fz->ops->start(fz);
    if (error)
        freezer_destroy(fz);
    return error;
}

void freezer_destroy(struct freezer *fz)
{
    fz->ops->stop(fz);
    close_all(fz);
    unmap_all(fz);
    pthread_mutex_destroy(&fz->lock);
}

/* The descriptors act on the parent's address space; what is kept from children is not here. */
void freezer_abandon(struct freezer *fz)
{
    fz->ops->abandon(fz);
    close_all(fz);
    fz->windows[0] = fz->windows[1] = 0;
    pthread_mutex_init(&fz->lock, NULL);
}

static int region_fd(const struct freezer *fz)
{
    return fz->uffd >= 0 ? fz->uffd : fz->wp_fd;
}

int freezer_attach(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int mode = freezer_registration(fz);
    int error = fz->ops->fills_holes ? os_populate(address, n, false) : 0;
    if (error && error != -EINVAL) /* EINVAL: before Linux 5.14; the fault thread fills holes */
        return error;
    return mode ? os_uffd_register(region_fd(fz), address, n, mode) : 0;
}

uint64_t freezer_mappings(const struct freezer *fz)
{
    return freezer_registration(fz) ? 2 : 0;
}

int freezer_detach(struct freezer *fz, uintptr_t address, uint64_t n)
{
    return region_fd(fz) >= 0 ? os_uffd_unregister(region_fd(fz), address, n) : 0;
}

/*
 * A range may cross mappings, which no way of freezing does at once: on such
 * an error a shorter one is tried.
 */
static int64_t freeze_some(struct freezer *fz, uintptr_t address, uint64_t n, const uint8_t **view)
{
    for (;;) {
        fz->start = address;
        fz->end = address + bytes_of(n);
        int64_t got = fz->ops->freeze(fz, address, n, view);
        if (got > 0)
            return got;
        fz->ops->thaw(fz, address, n);
        bool shorter = got == -EFAULT || got == -EINVAL || got == -ENOENT || n > FREEZE_MAX;
        if (n == 1 || !shorter)
            return got;
        n = n > FREEZE_MAX ? FREEZE_MAX : n / 2;
    }
}

static bool meets(uintptr_t address, uint64_t n, uintptr_t start, uintptr_t end)
{
    return address < end && start < address + bytes_of(n);
}

/*
 * Does this thread itself need these pages: its stack, its thread-local data?  It would wait for
 * itself.  Whoever finds memory to register leaves stacks out, but a thread may have been given
 * any memory for one.
 */
static bool needed_here(uintptr_t address, uint64_t n)
{
    uintptr_t frame = (uintptr_t)__builtin_frame_address(0), self = (uintptr_t)pthread_self();
    uintptr_t top = self > frame ? least(frame + STACK_ABOVE, self) : frame + STACK_ABOVE;
    return meets(address, n, frame - STACK_BELOW, top) ||
           meets(address, n, self, self + THREAD_BYTES) ||
           meets(address, n, (uintptr_t)&errno, (uintptr_t)(&errno + 1));
}

uint64_t freeze_reach(const struct freezer *fz, uintptr_t address, uint64_t n)
{
    uint64_t rest = HUGE_PAGES - (address >> PAGE_SHIFT) % HUGE_PAGES;
    if (rest == HUGE_PAGES && n >= HUGE_PAGES && os_is_huge(fz->pagemap_fd, address))
        return HUGE_PAGES;
    n = least(n, rest);
    return least(n, FREEZE_MAX);
}

/*
 * After any fork, and for ever, a page that existed then is "shared" in the
 * kernel's eyes and cannot be moved (EBUSY).  Breaking copy-on-write makes it
 * exclusive again; that must happen unlocked, as it may fault.  Of what was a
 * huge page before the fork only the first page is asked (seen on Linux 6.18),
 * which may not be among ours: so such pages are parted.
 */
int64_t freeze(struct freezer *fz, uintptr_t address, uint64_t n, const uint8_t **view)
{
    n = freeze_reach(fz, address, n);
    if (needed_here(address, n))
        return -EBUSY;
    pthread_mutex_lock(&fz->lock);
    int64_t got = freeze_some(fz, address, n, view);
    if (got == -EBUSY && fz->mode == KSMPY_FREEZE_UFFD_MOVE) {
        pthread_mutex_unlock(&fz->lock);
        n = least(n, FREEZE_MAX);
        os_populate(address, n, true);
        os_split(address, n);
        pthread_mutex_lock(&fz->lock);
        got = freeze_some(fz, address, n, view);
    }
    if (got <= 0) {
        pthread_mutex_unlock(&fz->lock);
        return got ? got : -EAGAIN;
    }
    if (fz->mode != KSMPY_FREEZE_UFFD_MOVE && os_direct_io(fz->tasks_fd, address, (uint64_t)got)) {
        freeze_restore(fz, 0, (uint64_t)got);
        thaw(fz);
        return -EBUSY;
    }
    return got;
}

void freeze_restore(struct freezer *fz, uint64_t first, uint64_t n)
{
    fz->ops->restore(fz, fz->start, first, n);
}

/* It may be several mappings. */
static bool is_registered(const struct freezer *fz, uintptr_t address, uint64_t n)
{
    uint64_t half = n / 2;
    return os_uffd_is_registered(fz->wp_fd, address, n) ||
           (half && is_registered(fz, address, half) &&
            is_registered(fz, address + bytes_of(half), n - half));
}

int freeze_overlay(struct freezer *fz, uint64_t first, uint64_t n, int memfd, uint64_t offset)
{
    uintptr_t address = fz->start + bytes_of(first);
    if (fz->wp_fd >= 0 && !is_registered(fz, address, n))
        return -ECANCELED; /* its owner unmapped it, and others may have got the place */
    return os_map_frames(address, n, memfd, offset);
}

int freeze_zero(struct freezer *fz, uint64_t first, uint64_t n, int vma_flags)
{
    uintptr_t address = fz->start + bytes_of(first);
    if (fz->wp_fd >= 0 && !is_registered(fz, address, n))
        return -ECANCELED;
    return fz->ops->zero(fz, address, n, vma_flags);
}

void thaw(struct freezer *fz)
{
    fz->ops->thaw(fz, fz->start, (fz->end - fz->start) >> PAGE_SHIFT);
    pthread_mutex_unlock(&fz->lock);
}

int freezer_track_overlay(struct freezer *fz, uintptr_t address, uint64_t n)
{
    return fz->tracked ? os_uffd_register(fz->uffd, address, n, freezer_registration(fz)) : 0;
}

int freezer_still(struct freezer *fz, uintptr_t address, uint64_t n)
{
    uint8_t kinds[FREEZE_MAX];
    bool copies = os_pages(fz->pagemap_fd, address, n, kinds) < 0;
    for (uint64_t i = 0; i < n && !copies; i++)
        copies = kinds[i] != OS_PAGE_NONE && kinds[i] != OS_PAGE_FILE;
    return copies && os_direct_io(fz->tasks_fd, address, n) ? -EBUSY : 0;
}

int freezer_copy(struct freezer *fz, uintptr_t address, uint64_t n)
{
    return guard_copy((void *)fz->stage, (const void *)address, bytes_of(n)) ? 0 : -EFAULT;
}

/*
 * Old kernels (6.1 for one) protect no more than lies in one mapping at a time
 * (ENOENT), and after a fork neighbours with equal rights need not be one.
 */
int freezer_block_writers(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int error = os_uffd_protect(fz->wp_fd, address, n, true);
    if (error != -ENOENT || n == 1)
        return error;
    error = 0;
    for (uint64_t i = 0; i < n && !error; i++)
        error = os_uffd_protect(fz->wp_fd, address + bytes_of(i), 1, true);
    return error;
}

/*
 * A failed mremap that has unmapped its target leaves nothing but our copy.
 * os_can_map() makes that unlikely; here it is made good.
 */
int freezer_replace(struct freezer *fz, uintptr_t address, uintptr_t from, uint64_t n)
{
    if (!os_can_map(n))
        return -ENOMEM;
    int error = os_remap(address, from, n, true);
    if (!error || os_claim(address, n) != 0)
        return error; /* it is still mapped */
    fz->ops->rebuild(fz, address, from, n);
    return 0;
}

uintptr_t freezer_shadow(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags)
{
    if (!fz->ops->shadow || os_is_rationed() || !os_can_map(n + 2))
        return 0;
    pthread_mutex_lock(&fz->lock);
    uintptr_t shadow = fz->ops->shadow(fz, address, n, vma_flags);
    pthread_mutex_unlock(&fz->lock);
    return shadow;
}

int freezer_unoverlay(struct freezer *fz, uintptr_t address, uint64_t n, uintptr_t blank,
                      int vma_flags)
{
    if (needed_here(address, n))
        return -EBUSY;
    pthread_mutex_lock(&fz->lock);
    int error = fz->ops->unoverlay(fz, address, n, blank, vma_flags);
    pthread_mutex_unlock(&fz->lock);
    return error;
}
