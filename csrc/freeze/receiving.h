/*
 * What libraries call instead of the C library's functions that receive from sockets (see
 * freeze/retries.h).
 *
 * The kernel takes bytes, descriptors and connections out of the socket before it writes to the
 * caller's structures who sent them, and what it cannot write there by then is lost.  So it is given
 * structures of our own, which are copied to the caller's in user mode, where whoever touches frozen
 * memory waits.  Where there is no memory at such an address the answer is the kernel's: EFAULT, but
 * for the limits of guard_copy_for_call().
 */
#ifndef KSMPY_FREEZE_RECEIVING_H
#define KSMPY_FREEZE_RECEIVING_H

#include <sys/socket.h>
#include <sys/types.h>

ssize_t receiving_recv(int fd, void *buffer, size_t n, int flags);
ssize_t receiving_recvfrom(int fd, void *buffer, size_t n, int flags, struct sockaddr *from,
                           socklen_t *size);
ssize_t receiving_recvmsg(int fd, struct msghdr *message, int flags);
int receiving_accept(int fd, struct sockaddr *from, socklen_t *size);
int receiving_accept4(int fd, struct sockaddr *from, socklen_t *size, int flags);

#endif
