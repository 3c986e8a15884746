#include "freeze/receiving.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>

#include "freeze/attempts.h"

/* Longer ones stay where they are, as they had to lie on the stack of whoever calls. */
#define CONTROL_MAX 4096

/* What is out of band, and the list of errors, is gone once it was asked for, also in a stream. */
#define ONCE (MSG_OOB | MSG_ERRQUEUE)

static bool is_received_again(struct attempt *attempt, int fd, int flags)
{
    return !(flags & ONCE) && attempt_is_read_again(attempt, fd);
}

/* ---- bytes ---- */

/*
 * Less than all came where all was wanted: because of a freeze?  Then there is still something in the
 * stream, as there is not at its end, or when a signal has interrupted the call.
 */
static bool is_cut(const struct attempt *attempt, int fd, int flags)
{
    int there = 0;
    if (!(flags & MSG_WAITALL) || flags & (ONCE | MSG_PEEK | MSG_TRUNC) ||
        !attempt_met_freeze(attempt))
        return false;
    bool cut = attempt_is_from_stream(fd) && ioctl(fd, FIONREAD, &there) == 0 && there > 0;
    errno = attempt->error;
    return cut;
}

/* got: what the call has returned. */
static ssize_t receive_rest(struct attempt *now, int fd, char *buffer, size_t n, int flags,
                            ssize_t got)
{
    while (got > 0 && (size_t)got < n && is_cut(now, fd, flags)) {
        ssize_t more;
        attempt_got_on(now);
        MAKE(more, is_received_again(now, fd, flags),
             recv(fd, buffer + got, n - (size_t)got, flags));
        if (more <= 0) {
            errno = now->error;
            break;
        }
        got += more;
    }
    return got;
}

ssize_t receiving_recv(int fd, void *buffer, size_t n, int flags)
{
    struct attempt now = attempt_begin();
    ssize_t got;
    MAKE(got, is_received_again(&now, fd, flags), recv(fd, buffer, n, flags));
    return receive_rest(&now, fd, buffer, n, flags, got);
}

/* ---- with the name of who sent them ---- */

/* length: of the name, which may be longer than the room for it: *size. */
static void hand_over_name(void *to, socklen_t *size, const void *name, socklen_t length)
{
    memcpy(to, name, length < *size ? length : *size);
    *size = length;
}

/* The kernel's names have room in a sockaddr_storage, however much room there is said to be. */
ssize_t receiving_recvfrom(int fd, void *buffer, size_t n, int flags, struct sockaddr *from,
                           socklen_t *size)
{
    struct attempt now = attempt_begin();
    struct sockaddr_storage name;
    if (from && !size)
        return recvfrom(fd, buffer, n, flags, from, size);
    socklen_t length = from ? *size : 0;
    struct sockaddr *to = from ? (struct sockaddr *)&name : NULL;
    ssize_t got;
    MAKE(got, is_received_again(&now, fd, flags), recvfrom(fd, buffer, n, flags, to, &length));
    if (got >= 0 && from)
        hand_over_name(from, size, &name, length);
    return receive_rest(&now, fd, buffer, n, flags, got);
}

int receiving_accept(int fd, struct sockaddr *from, socklen_t *size)
{
    struct sockaddr_storage name;
    if (!from || !size)
        return accept(fd, from, size);
    socklen_t length = *size;
    int got = accept(fd, (struct sockaddr *)&name, &length);
    if (got >= 0)
        hand_over_name(from, size, &name, length);
    return got;
}

int receiving_accept4(int fd, struct sockaddr *from, socklen_t *size, int flags)
{
    struct sockaddr_storage name;
    if (!from || !size)
        return accept4(fd, from, size, flags);
    socklen_t length = *size;
    int got = accept4(fd, (struct sockaddr *)&name, &length, flags);
    if (got >= 0)
        hand_over_name(from, size, &name, length);
    return got;
}

/* ---- messages ---- */

/* In the kernel's order. */
static void hand_over(struct msghdr *message, const struct msghdr *own)
{
    if (own->msg_control != message->msg_control)
        memcpy(message->msg_control, own->msg_control, own->msg_controllen);
    if (message->msg_name)
        hand_over_name(message->msg_name, &message->msg_namelen, own->msg_name, own->msg_namelen);
    message->msg_flags = own->msg_flags;
    message->msg_controllen = own->msg_controllen;
}

static ssize_t receive(int fd, struct msghdr *message, int flags, void *control)
{
    struct attempt now = attempt_begin();
    struct sockaddr_storage name;
    struct msghdr own = *message;
    ssize_t got;
    own.msg_name = own.msg_name ? &name : NULL;
    own.msg_control = control;
    MAKE(got, is_received_again(&now, fd, flags), recvmsg(fd, &own, flags));
    if (got >= 0)
        hand_over(message, &own);
    return got;
}

/* In a frame of its own, which others do not need.  What the kernel leaves out in between is 0. */
__attribute__((noinline)) static ssize_t receive_with_control(int fd, struct msghdr *message,
                                                              int flags)
{
    _Alignas(struct cmsghdr) char control[CONTROL_MAX];
    memset(control, 0, message->msg_controllen);
    return receive(fd, message, flags, control);
}

ssize_t receiving_recvmsg(int fd, struct msghdr *message, int flags)
{
    bool small = message->msg_controllen && message->msg_controllen <= CONTROL_MAX;
    if (message->msg_control && small)
        return receive_with_control(fd, message, flags);
    return receive(fd, message, flags, message->msg_control);
}
