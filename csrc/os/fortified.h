/*
 * What gcc makes of calls of the C library when it knows how long the buffer is: they end the program
 * where more is asked for than there is room.  glibc declares them only for what is compiled with
 * _FORTIFY_SOURCE, and not every version has all.
 */
#ifndef KSMPY_OS_FORTIFIED_H
#define KSMPY_OS_FORTIFIED_H

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>

#ifdef __GLIBC__
#define WEAK __attribute__((weak))
extern WEAK ssize_t __read_chk(int fd, void *buffer, size_t n, size_t room);
extern WEAK ssize_t __pread_chk(int fd, void *buffer, size_t n, off_t at, size_t room);
extern WEAK ssize_t __pread64_chk(int fd, void *buffer, size_t n, off_t at, size_t room);
extern WEAK ssize_t __recv_chk(int fd, void *buffer, size_t n, size_t room, int flags);
extern WEAK ssize_t __recvfrom_chk(int fd, void *buffer, size_t n, size_t room, int flags,
                                   struct sockaddr *from, socklen_t *size);
extern WEAK size_t __fread_chk(void *buffer, size_t room, size_t size, size_t count, FILE *file);
extern WEAK int __poll_chk(struct pollfd *fds, nfds_t n, int timeout, size_t room);
extern WEAK int __ppoll_chk(struct pollfd *fds, nfds_t n, const struct timespec *timeout,
                            const sigset_t *mask, size_t room);
#undef WEAK
#endif

#endif
