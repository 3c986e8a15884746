/*
 * A system call of a library's that failed with EFAULT: because of a freeze, and is it to be made
 * again once that is over?
 *
 * The functions that are called instead of the C library's (freeze/retries.h) begin an attempt, make
 * the call, and ask.
 */
#ifndef KSMPY_FREEZE_ATTEMPTS_H
#define KSMPY_FREEZE_ATTEMPTS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct attempt {
    uint64_t ended; /* freezes_ended() before the call */
    uint64_t since; /* ns, for how long it has failed without getting anywhere; or 0 */
    uint64_t made; /* ns, when it was made again */
    int error; /* errno before all of them */
};

struct attempt attempt_begin(void);
/* Was anything frozen at any moment since the attempt began? */
bool attempt_met_freeze(const struct attempt *attempt);
/*
 * A call failed: is it to be made again?  Then it has waited for the thaw, and errno is as it was
 * before the first attempt.  This has 5 s of patience (freezes_wait()), and all of it again after an
 * attempt that has waited for something itself.
 */
bool attempt_is_again(struct attempt *attempt);
/* Is it a socket that gives bytes, and not messages? */
bool attempt_is_from_stream(int fd);
/* The same of a call that has done a part only, and is to be made again as a whole. */
bool attempt_is_cut(struct attempt *attempt);
/* The call has got on, and has all of the patience again. */
void attempt_got_on(struct attempt *attempt);
/* The same as attempt_is_again() for a call that reads from fd: only where nothing is lost by that. */
bool attempt_is_read_again(struct attempt *attempt, int fd);

/* -1 and EFAULT, where the caller has no memory at an address that it has given. */
int attempt_bad_address(void);

/* Makes a call again for as long as it fails only because of a freeze, which `again` tells. */
#define MAKE(got, again, call)                                                                     \
    do                                                                                             \
        (got) = (call);                                                                            \
    while ((got) < 0 && (again))

static inline size_t bytes_in(const struct iovec *buffers, int count)
{
    size_t bytes = 0;
    for (int i = 0; i < count; i++)
        bytes += buffers[i].iov_len;
    return bytes;
}

#endif
