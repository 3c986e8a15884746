#include "freeze/attempts.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "freeze/freezes.h"
#include "os/clock.h"

struct attempt attempt_begin(void)
{
    return (struct attempt){.ended = freezes_ended(), .error = errno};
}

bool attempt_met_freeze(const struct attempt *attempt)
{
    return freezes_begun() > attempt->ended;
}

/* Waits until all is thawed that is frozen now. */
static bool wait_for_thaw(struct attempt *attempt)
{
    if (!attempt->since)
        attempt->since = os_now_ns();
    return freezes_wait(attempt->since);
}

bool attempt_is_again(struct attempt *attempt)
{
    if (errno != EFAULT || !attempt_met_freeze(attempt))
        return false;
    bool thawed = wait_for_thaw(attempt);
    attempt->ended = freezes_ended();
    errno = thawed ? attempt->error : EFAULT;
    return thawed;
}

/*
 * Is what is read from there gone, though it could not be handed over?  So it is with datagrams, and
 * with counters and lists of events, which are files of no type.
 */
static bool gives_once(int fd)
{
    struct stat status;
    int type = 0;
    socklen_t size = sizeof type;
    if (fstat(fd, &status) < 0 || !(status.st_mode & S_IFMT))
        return true;
    return S_ISSOCK(status.st_mode) &&
           (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0 || type != SOCK_STREAM);
}

bool attempt_is_read_again(struct attempt *attempt, int fd)
{
    if (errno != EFAULT || !attempt_met_freeze(attempt))
        return false;
    bool once = gives_once(fd);
    errno = EFAULT;
    return !once && attempt_is_again(attempt);
}
