/*
 * The process's mappings, as /proc/self/maps has them.  -EBADF: the program has closed that file.
 */
#ifndef KSMPY_OS_PROC_MAPS_H
#define KSMPY_OS_PROC_MAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct os_vma {
    uintptr_t start, end;
    uint64_t inode, dev; /* of the mapped file; 0 without one */
    uint64_t offset; /* in it, of the mapping's start */
    bool private_rw, private_ro, shared; /* rights: readable, and writable or not */
};

static inline bool os_vma_shows(const struct os_vma *vma, uint64_t inode, uint64_t dev)
{
    return vma->inode == inode && vma->dev == dev;
}

struct os_maps {
    int fd;
    uint64_t inode;   /* behind fd, unless the program has closed it */
    bool query;       /* PROCMAP_QUERY works (Linux 6.11) */
    char *buffer;     /* the text way, once it is gone: what was read, and the last answer */
    size_t fill, at;
    struct os_vma last;
};

int os_maps_open(struct os_maps *maps);
/* The same where no descriptor is free but a standard one: see os/apart.h. */
int os_maps_open_anywhere(struct os_maps *maps);
void os_maps_close(struct os_maps *maps);
/* Forgets what was read before: to be called when mappings of interest may have changed. */
void os_maps_refresh(struct os_maps *maps);
/* The first mapping that ends above address: 1 found, 0 none, or -errno. Ask in ascending order. */
int os_maps_find(struct os_maps *maps, uintptr_t address, struct os_vma *out);
/* How many mappings the process has, or -errno. */
int64_t os_maps_count(struct os_maps *maps);
/* The same for who has no lock on one; -EMFILE and the like, where those can be read all the same. */
int64_t os_mappings(void);
typedef bool os_visit_shared(const char *path, uint64_t inode, void *data); /* true: no more */
/*
 * The files of shared mappings, by their paths as the kernel tells them.  1: visit() said true at
 * one of them; 0: it did not; or -errno, -ENOTTY where the kernel has no PROCMAP_QUERY.
 */
int os_maps_each_shared(os_visit_shared *visit, void *data);
uint64_t os_max_map_count(void);

#endif
