#include "freeze/waiting.h"

#include <stdbool.h>
#include <stdint.h>

#include "freeze/attempts.h"
#include "os/clock.h"

#define NS_PER_MS ((uint64_t)1000000)
#define NS_PER_S ((uint64_t)1000000000)
#define LONGEST_S ((time_t)1 << 32) /* some 136 years */

/* ms: negative or 0 is no time at all. */
static uint64_t end_of(int ms)
{
    return ms > 0 ? os_now_ns() + (uint64_t)ms * NS_PER_MS : 0;
}

static uint64_t ns_until(uint64_t end)
{
    uint64_t now = os_now_ns();
    return end > now ? end - now : 0;
}

/* Rounded up, as the kernel does not wait for less than it was told to. */
static int ms_left(int ms, uint64_t end)
{
    return ms > 0 ? (int)((ns_until(end) + NS_PER_MS - 1) / NS_PER_MS) : ms;
}

int waiting_poll(struct pollfd *fds, nfds_t n, int timeout)
{
    struct attempt now = attempt_begin();
    uint64_t end = end_of(timeout);
    int got;
    MAKE(got, attempt_is_again(&now), poll(fds, n, ms_left(timeout, end)));
    return got;
}

/* Can its end be told in ns?  What is wrong, or has no end, the kernel is to see as it is. */
static bool is_time(const struct timespec *time)
{
    return time && time->tv_sec >= 0 && time->tv_sec < LONGEST_S && time->tv_nsec >= 0 &&
           time->tv_nsec < (long)NS_PER_S;
}

static int ppoll_until(struct pollfd *fds, nfds_t n, uint64_t end, const sigset_t *mask)
{
    uint64_t ns = ns_until(end);
    struct timespec left = {.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};
    return ppoll(fds, n, &left, mask);
}

int waiting_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout,
                  const sigset_t *mask)
{
    struct attempt now = attempt_begin();
    uint64_t end = os_now_ns();
    int got;
    if (!is_time(timeout)) {
        MAKE(got, attempt_is_again(&now), ppoll(fds, n, timeout, mask));
        return got;
    }
    end += (uint64_t)timeout->tv_sec * NS_PER_S + (uint64_t)timeout->tv_nsec;
    MAKE(got, attempt_is_again(&now), ppoll_until(fds, n, end, mask));
    return got;
}

int waiting_epoll_wait(int fd, struct epoll_event *events, int max, int timeout)
{
    struct attempt now = attempt_begin();
    uint64_t end = end_of(timeout);
    int got;
    MAKE(got, attempt_is_again(&now), epoll_wait(fd, events, max, ms_left(timeout, end)));
    return got;
}

int waiting_epoll_pwait(int fd, struct epoll_event *events, int max, int timeout,
                        const sigset_t *mask)
{
    struct attempt now = attempt_begin();
    uint64_t end = end_of(timeout);
    int got;
    MAKE(got, attempt_is_again(&now), epoll_pwait(fd, events, max, ms_left(timeout, end), mask));
    return got;
}
