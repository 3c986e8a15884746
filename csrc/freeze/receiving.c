#include "freeze/receiving.h"

#include <stdbool.h>
#include <string.h>

#include "freeze/attempts.h"

/* Longer ones stay where they are, as they had to lie on the stack of whoever calls. */
#define CONTROL_MAX 4096

/* What is out of band, and the list of errors, is gone once it was asked for, also in a stream. */
static bool is_received_again(struct attempt *attempt, int fd, int flags)
{
    return !(flags & (MSG_OOB | MSG_ERRQUEUE)) && attempt_is_read_again(attempt, fd);
}

/* size: of the name, which may be longer than the room for it. */
static void hand_over_name(void *to, socklen_t room, const void *name, socklen_t size)
{
    memcpy(to, name, size < room ? size : room);
}

ssize_t receiving_recv(int fd, void *buffer, size_t n, int flags)
{
    struct attempt now = attempt_begin();
    ssize_t got;
    MAKE(got, is_received_again(&now, fd, flags), recv(fd, buffer, n, flags));
    return got;
}

/* The kernel's own names have room in a sockaddr_storage, however much room there is said to be. */
ssize_t receiving_recvfrom(int fd, void *buffer, size_t n, int flags, struct sockaddr *from,
                           socklen_t *size)
{
    struct attempt now = attempt_begin();
    struct sockaddr_storage name;
    if (from && !size)
        return recvfrom(fd, buffer, n, flags, from, size);
    socklen_t room = from ? *size : 0, length = room;
    struct sockaddr *to = from ? (struct sockaddr *)&name : NULL;
    ssize_t got;
    MAKE(got, is_received_again(&now, fd, flags), recvfrom(fd, buffer, n, flags, to, &length));
    if (got >= 0 && from) {
        hand_over_name(from, room, &name, length);
        *size = length;
    }
    return got;
}

/* In the kernel's order. */
static void hand_over(struct msghdr *message, const struct msghdr *own)
{
    if (own->msg_control != message->msg_control)
        memcpy(message->msg_control, own->msg_control, own->msg_controllen);
    if (message->msg_name) {
        hand_over_name(message->msg_name, message->msg_namelen, own->msg_name, own->msg_namelen);
        message->msg_namelen = own->msg_namelen;
    }
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
