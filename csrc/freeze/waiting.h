/*
 * What libraries call instead of the C library's functions that wait for one of many files (see
 * freeze/retries.h).  Such a call fails at its end, so one that is made again waits for what is left
 * of its time.
 */
#ifndef KSMPY_FREEZE_WAITING_H
#define KSMPY_FREEZE_WAITING_H

#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <time.h>

int waiting_poll(struct pollfd *fds, nfds_t n, int timeout);
int waiting_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout,
                  const sigset_t *mask);
int waiting_epoll_wait(int fd, struct epoll_event *events, int max, int timeout);
int waiting_epoll_pwait(int fd, struct epoll_event *events, int max, int timeout,
                        const sigset_t *mask);

#endif
