#include "store/files.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "os/files.h"
#include "store/layout.h"
#include "store/store.h"

void store_forget_files(struct store *store)
{
    store->memfd = store->write_fd = store->lock_fd = -1;
}

void store_close_files(struct store *store)
{
    int files[] = {store->memfd, store->write_fd, store->lock_fd};
    const uint64_t inodes[] = {store->inode, store->inode, store->lock_inode};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++)
        if (files[i] >= 0 && (!inodes[i] || os_is_file(files[i], inodes[i])))
            close(files[i]);
    store_forget_files(store);
}

int store_know_files(struct store *store)
{
    int error = os_know_file(store->lock_fd, &store->lock_inode, &store->dev);
    if (!error)
        error = os_know_file(store->write_fd, &store->inode, &store->dev);
    return error ? error : os_know_file(store->memfd, &store->inode, &store->dev);
}

bool store_has_write_file(const struct store *store)
{
    return os_is_file(store->write_fd, store->inode);
}

bool store_has_lock_file(const struct store *store)
{
    return os_is_file(store->lock_fd, store->lock_inode);
}

bool store_has_files(const struct store *store)
{
    return os_is_file(store->memfd, store->inode) && store_has_write_file(store) &&
           store_has_lock_file(store);
}

int store_open(struct store *store, int fd)
{
    memset(store, 0, sizeof *store);
    store_forget_files(store);
    store->shared = true;
    store->slot = NO_SLOT;
    store->lock_fd = os_reopen(fd, O_RDWR);
    if (store->lock_fd < 0)
        return store->lock_fd;
    store->write_fd = os_reopen(fd, O_RDWR);
    if (store->write_fd < 0)
        return store->write_fd;
    store->memfd = os_reopen(fd, O_RDONLY);
    return store->memfd < 0 ? store->memfd : store_know_files(store);
}
