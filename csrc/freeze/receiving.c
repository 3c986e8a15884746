#include "freeze/receiving.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "freeze/attempts.h"
#include "os/guard.h"

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

/* length: of the name, which may be longer than the room for it: *size, which is n. */
static int hand_over_name(void *to, socklen_t *size, socklen_t n, const void *name,
                          socklen_t length)
{
    bool done = guard_copy_for_call(to, name, length < n ? length : n) &&
                guard_copy_for_call(size, &length, sizeof length);
    return done ? 0 : attempt_bad_address();
}

/* The kernel's names have room in a sockaddr_storage, however much room there is said to be. */
ssize_t receiving_recvfrom(int fd, void *buffer, size_t n, int flags, struct sockaddr *from,
                           socklen_t *size)
{
    struct attempt now = attempt_begin();
    struct sockaddr_storage name;
    socklen_t room = 0;
    if (from && !guard_copy_for_call(&room, size, sizeof room))
        return recvfrom(fd, buffer, n, flags, from, size);
    socklen_t length = room;
    struct sockaddr *to = from ? (struct sockaddr *)&name : NULL;
    ssize_t got;
    MAKE(got, is_received_again(&now, fd, flags), recvfrom(fd, buffer, n, flags, to, &length));
    if (got >= 0 && from && hand_over_name(from, size, room, &name, length) < 0)
        return -1;
    return receive_rest(&now, fd, buffer, n, flags, got);
}

/* A connection whose name could not be handed over is closed, as by the kernel. */
static int hand_over_connection(int connection, struct sockaddr *from, socklen_t *size,
                                socklen_t room, const void *name, socklen_t length)
{
    if (connection < 0 || hand_over_name(from, size, room, name, length) == 0)
        return connection;
    close(connection);
    return attempt_bad_address();
}

int receiving_accept(int fd, struct sockaddr *from, socklen_t *size)
{
    struct sockaddr_storage name;
    socklen_t room;
    if (!from || !guard_copy_for_call(&room, size, sizeof room))
        return accept(fd, from, size);
    socklen_t length = room;
    int got = accept(fd, (struct sockaddr *)&name, &length);
    return hand_over_connection(got, from, size, room, &name, length);
}

int receiving_accept4(int fd, struct sockaddr *from, socklen_t *size, int flags)
{
    struct sockaddr_storage name;
    socklen_t room;
    if (!from || !guard_copy_for_call(&room, size, sizeof room))
        return accept4(fd, from, size, flags);
    socklen_t length = room;
    int got = accept4(fd, (struct sockaddr *)&name, &length, flags);
    return hand_over_connection(got, from, size, room, &name, length);
}

/* ---- messages ---- */

static void close_descriptors(struct msghdr *own)
{
    for (struct cmsghdr *each = CMSG_FIRSTHDR(own); each; each = CMSG_NXTHDR(own, each)) {
        if (each->cmsg_level != SOL_SOCKET || each->cmsg_type != SCM_RIGHTS)
            continue;
        const int *fds = (const int *)(const void *)CMSG_DATA(each);
        for (size_t i = 0; i < (each->cmsg_len - CMSG_LEN(0)) / sizeof *fds; i++)
            close(fds[i]);
    }
}

/* What cannot be handed over is cut off, as by the kernel. */
static void hand_over_control(void *to, struct msghdr *own)
{
    if (own->msg_control == to || guard_copy_for_call(to, own->msg_control, own->msg_controllen))
        return;
    close_descriptors(own);
    own->msg_controllen = 0;
    own->msg_flags |= MSG_CTRUNC;
}

/* In the kernel's order.  given: what the caller's message was. */
static int hand_over(struct msghdr *message, const struct msghdr *given, struct msghdr *own)
{
    hand_over_control(given->msg_control, own);
    if (given->msg_name && hand_over_name(given->msg_name, &message->msg_namelen,
                                          given->msg_namelen, own->msg_name, own->msg_namelen) < 0)
        return -1;
    bool done = guard_copy_for_call(&message->msg_flags, &own->msg_flags, sizeof own->msg_flags) &&
                guard_copy_for_call(&message->msg_controllen, &own->msg_controllen,
                                    sizeof own->msg_controllen);
    return done ? 0 : attempt_bad_address();
}

static ssize_t receive(int fd, struct msghdr *message, const struct msghdr *given, int flags,
                       void *control)
{
    struct attempt now = attempt_begin();
    struct sockaddr_storage name;
    struct msghdr own = *given;
    ssize_t got;
    own.msg_name = own.msg_name ? &name : NULL;
    own.msg_control = control;
    MAKE(got, is_received_again(&now, fd, flags), recvmsg(fd, &own, flags));
    return got >= 0 && hand_over(message, given, &own) < 0 ? -1 : got;
}

/* In a frame of its own, which others do not need.  What the kernel leaves out in between is 0. */
__attribute__((noinline)) static ssize_t receive_with_control(int fd, struct msghdr *message,
                                                              const struct msghdr *given, int flags)
{
    _Alignas(struct cmsghdr) char control[CONTROL_MAX];
    memset(control, 0, given->msg_controllen);
    return receive(fd, message, given, flags, control);
}

ssize_t receiving_recvmsg(int fd, struct msghdr *message, int flags)
{
    struct msghdr given;
    if (!guard_copy_for_call(&given, message, sizeof given))
        return recvmsg(fd, message, flags);
    bool small = given.msg_controllen && given.msg_controllen <= CONTROL_MAX;
    if (given.msg_control && small)
        return receive_with_control(fd, message, &given, flags);
    return receive(fd, message, &given, flags, given.msg_control);
}
