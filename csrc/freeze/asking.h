/*
 * What libraries call instead of the C library's functions that ask the kernel for something (see
 * freeze/retries.h): for what became of a child, and the next message of a queue, of which it tells
 * only once; and for what it would tell again.
 *
 * The kernel forgets a child before it writes its status, and what it cannot write there by then is
 * lost, as a message is.  So it is given a status of our own, as in freeze/receiving.h.
 */
#ifndef KSMPY_FREEZE_ASKING_H
#define KSMPY_FREEZE_ASKING_H

#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/sysinfo.h>
#include <sys/types.h>
#include <sys/utsname.h>
#include <sys/wait.h>

pid_t asking_wait(int *status);
pid_t asking_waitpid(pid_t pid, int *status, int options);
pid_t asking_wait3(int *status, int options, struct rusage *usage);
pid_t asking_wait4(pid_t pid, int *status, int options, struct rusage *usage);
int asking_waitid(idtype_t type, id_t id, siginfo_t *info, int options);
ssize_t asking_msgrcv(int queue, void *message, size_t n, long type, int flags);

int asking_getpeername(int fd, struct sockaddr *name, socklen_t *size);
int asking_getsockname(int fd, struct sockaddr *name, socklen_t *size);
int asking_getsockopt(int fd, int level, int option, void *value, socklen_t *size);
int asking_pipe(int fds[2]);
int asking_pipe2(int fds[2], int flags);
ssize_t asking_readlink(const char *path, char *buffer, size_t n);
ssize_t asking_readlinkat(int fd, const char *path, char *buffer, size_t n);
int asking_sched_getaffinity(pid_t thread, size_t n, cpu_set_t *set);
int asking_socketpair(int domain, int type, int protocol, int fds[2]);
int asking_sysinfo(struct sysinfo *info);
int asking_uname(struct utsname *names);

#endif
