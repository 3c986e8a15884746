/*
 * Rings of io_uring that never make the kernel write into the program's memory.
 */
#ifndef KSMPY_OS_RINGS_H
#define KSMPY_OS_RINGS_H

#include <stdbool.h>

/*
 * Was a ring, by the name of its descriptor in /proc/self/fd, used to tell an epoll what to wait
 * for, and for nothing else?  false also where nobody can tell, or it was not used yet.
 */
bool os_ring_tells_epoll_only(const char *descriptor);

#endif
