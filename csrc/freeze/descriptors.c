#include "freeze/descriptors.h"

#include <unistd.h>

#include "freeze/ops.h"
#include "freeze/removal_state.h"
#include "os/files.h"

void freezer_forget_files(struct freezer *fz)
{
    fz->uffd = fz->wp_fd = fz->stop_fd = fz->pagemap_fd = fz->tasks_fd = -1;
    removals_forget(&fz->removals);
}

static int file_of(const struct freezer *fz, int i)
{
    const struct removals *removals = &fz->removals;
    const int files[FREEZER_FILES] = {fz->uffd,          fz->wp_fd,         fz->stop_fd,
                                      fz->pagemap_fd,    fz->tasks_fd,      removals->overlay_fd,
                                      removals->gate_fd, removals->stop_fd, removals->tasks_fd};
    return files[i];
}

void freezer_know_files(struct freezer *fz)
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

void freezer_close_files(struct freezer *fz)
{
    for (int i = 0; i < FREEZER_FILES; i++)
        if (has_file(fz, i))
            close(file_of(fz, i));
    removals_close(&fz->removals);
    freezer_forget_files(fz);
}
