#include "freeze/asking.h"

#include <fcntl.h>
#include <stdbool.h>
#include <sys/msg.h>
#include <unistd.h>

#include "freeze/attempts.h"
#include "os/guard.h"

/* ---- children ---- */

pid_t asking_wait4(pid_t pid, int *status, int options, struct rusage *usage)
{
    int own_status;
    struct rusage own_usage;
    pid_t got = wait4(pid, status ? &own_status : NULL, options, usage ? &own_usage : NULL);
    bool done =
        got <= 0 || ((!status || guard_copy_for_call(status, &own_status, sizeof own_status)) &&
                     (!usage || guard_copy_for_call(usage, &own_usage, sizeof own_usage)));
    return done ? got : attempt_bad_address();
}

pid_t asking_wait3(int *status, int options, struct rusage *usage)
{
    return asking_wait4(-1, status, options, usage);
}

pid_t asking_waitpid(pid_t pid, int *status, int options)
{
    return asking_wait4(pid, status, options, NULL);
}

pid_t asking_wait(int *status)
{
    return asking_wait4(-1, status, 0, NULL);
}

/* The kernel writes some of the fields, and leaves the others. */
int asking_waitid(idtype_t type, id_t id, siginfo_t *info, int options)
{
    siginfo_t own;
    if (!info || !guard_copy_for_call(&own, info, sizeof own))
        return waitid(type, id, info, options);
    int got = waitid(type, id, &own, options);
    return got < 0 || guard_copy_for_call(info, &own, sizeof own) ? got : attempt_bad_address();
}

/* ---- messages of a queue ---- */

#define QUEUED_MAX 8192 /* bytes: as long as a message is, unless kernel.msgmax was raised */

/* In a frame of its own, which others do not need. */
__attribute__((noinline)) static ssize_t receive_queued(int queue, void *message, size_t n,
                                                        long type, int flags)
{
    struct {
        long type;
        char text[QUEUED_MAX];
    } own;
    ssize_t got = msgrcv(queue, &own, n, type, flags);
    bool done = got < 0 || guard_copy_for_call(message, &own, sizeof own.type + (size_t)got);
    return done ? got : attempt_bad_address();
}

ssize_t asking_msgrcv(int queue, void *message, size_t n, long type, int flags)
{
    return n > QUEUED_MAX ? msgrcv(queue, message, n, type, flags)
                          : receive_queued(queue, message, n, type, flags);
}

/* ---- options ---- */

#define OPTION_MAX 256 /* bytes: longer ones are asked for where they are to be */

/*
 * An error of a socket (SO_ERROR) is told only once.  Some options are read from the caller's memory
 * before they are written there.
 */
int asking_getsockopt(int fd, int level, int option, void *value, socklen_t *size)
{
    char own[OPTION_MAX];
    socklen_t room;
    if (!guard_copy_for_call(&room, size, sizeof room) || room > sizeof own ||
        !guard_copy_for_call(own, value, room))
        return getsockopt(fd, level, option, value, size);
    socklen_t length = room;
    int got = getsockopt(fd, level, option, own, &length);
    bool done = (got < 0 || guard_copy_for_call(value, own, length < room ? length : room)) &&
                (length == room || guard_copy_for_call(size, &length, sizeof length));
    return done ? got : attempt_bad_address();
}

/* ---- what is told again ---- */

#define ASKING(type, name, parameters, arguments)                                                  \
    type asking_##name parameters                                                                  \
    {                                                                                              \
        struct attempt now = attempt_begin();                                                      \
        type got;                                                                                  \
        MAKE(got, attempt_is_again(&now), name arguments);                                         \
        return got;                                                                                \
    }

ASKING(int, getpeername, (int fd, struct sockaddr *name, socklen_t *size), (fd, name, size))
ASKING(int, getsockname, (int fd, struct sockaddr *name, socklen_t *size), (fd, name, size))
/* Descriptors whose numbers could not be told are closed. */
ASKING(int, pipe, (int fds[2]), (fds))
ASKING(int, pipe2, (int fds[2], int flags), (fds, flags))
ASKING(int, socketpair, (int domain, int type, int protocol, int fds[2]),
       (domain, type, protocol, fds))
ASKING(ssize_t, readlink, (const char *path, char *buffer, size_t n), (path, buffer, n))
ASKING(ssize_t, readlinkat, (int fd, const char *path, char *buffer, size_t n),
       (fd, path, buffer, n))
ASKING(int, sched_getaffinity, (pid_t thread, size_t n, cpu_set_t *set), (thread, n, set))
ASKING(int, sysinfo, (struct sysinfo * info), (info))
ASKING(int, uname, (struct utsname * names), (names))
