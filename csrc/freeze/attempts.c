#include "freeze/attempts.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "freeze/freezes.h"
#include "os/clock.h"

#define LONG_NS ((uint64_t)100000000)

struct attempt attempt_begin(void)
{
    return (struct attempt){.ended = freezes_ended(), .error = errno};
}

bool attempt_met_freeze(const struct attempt *attempt)
{
    return freezes_begun() > attempt->ended;
}

/* An attempt that lasts longer has not only failed: it was waiting for bytes, or for an event. */
static bool has_waited(const struct attempt *attempt, uint64_t now)
{
    return now - attempt->made > LONG_NS;
}

static bool wait_for_thaw(struct attempt *attempt)
{
    uint64_t now = os_now_ns();
    if (!attempt->since || has_waited(attempt, now))
        attempt->since = now;
    bool thawed = freezes_wait(attempt->since);
    attempt->made = os_now_ns();
    attempt->ended = freezes_ended();
    return thawed;
}

bool attempt_is_again(struct attempt *attempt)
{
    if (errno != EFAULT || !attempt_met_freeze(attempt))
        return false;
    bool thawed = wait_for_thaw(attempt);
    errno = thawed ? attempt->error : EFAULT;
    return thawed;
}

bool attempt_is_cut(struct attempt *attempt)
{
    bool again = attempt_met_freeze(attempt) && wait_for_thaw(attempt);
    errno = attempt->error;
    return again;
}

void attempt_got_on(struct attempt *attempt)
{
    attempt->since = 0;
}

/* /dev/zero, /dev/random and /dev/urandom: Documentation/admin-guide/devices.txt of the kernel. */
static bool is_endless(dev_t device)
{
    unsigned number = minor(device);
    return major(device) == 1 && (number == 5 || number == 8 || number == 9);
}

bool attempt_is_from_stream(int fd)
{
    int type = 0;
    socklen_t size = sizeof type;
    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM;
}

/*
 * Is what could not be handed over still there to be read?  It is not with datagrams, with the lines
 * of a terminal, nor with counters and lists of events, which are files of no type; and nobody knows
 * with other devices.
 */
static bool is_kept(int fd)
{
    struct stat status;
    if (fstat(fd, &status) < 0)
        return false;
    switch (status.st_mode & S_IFMT) {
    case S_IFREG:
    case S_IFBLK:
    case S_IFIFO:
        return true;
    case S_IFSOCK:
        return attempt_is_from_stream(fd);
    case S_IFCHR:
        return is_endless(status.st_rdev);
    default:
        return false;
    }
}

bool attempt_is_read_again(struct attempt *attempt, int fd)
{
    if (errno != EFAULT || !attempt_met_freeze(attempt))
        return false;
    bool kept = is_kept(fd);
    errno = EFAULT;
    return kept && attempt_is_again(attempt);
}

int attempt_bad_address(void)
{
    errno = EFAULT;
    return -1;
}
