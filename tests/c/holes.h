/* Which parts of a file in memory have memory that was ever written to. */
#ifndef KSMPY_TESTS_HOLES_H
#define KSMPY_TESTS_HOLES_H

#include <stdbool.h>
#include <stdint.h>
#include <unistd.h>

/* The first stretch at or after *offset; false: there is none. */
static inline bool next_data(int fd, uint64_t *offset, uint64_t *end)
{
    off_t start = lseek(fd, (off_t)*offset, SEEK_DATA);
    off_t stop = start < 0 ? start : lseek(fd, start, SEEK_HOLE);
    if (stop < 0)
        return false;
    *offset = (uint64_t)start;
    *end = (uint64_t)stop;
    return true;
}

#endif
