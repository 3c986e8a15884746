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

struct attempt {
    uint64_t ended; /* freezes_ended() before the call */
    uint64_t since; /* ns, of the first attempt that failed; or 0 */
    int error; /* errno before all of them */
};

struct attempt attempt_begin(void);
/* Was anything frozen at any moment since the attempt began? */
bool attempt_met_freeze(const struct attempt *attempt);
/*
 * A call failed: is it to be made again?  Then it has waited for the thaw, and errno is as it was
 * before the first attempt.
 */
bool attempt_is_again(struct attempt *attempt);
/* The same for a call that reads from fd: only where nothing is lost by that. */
bool attempt_is_read_again(struct attempt *attempt, int fd);

/* Makes a call again for as long as it fails only because of a freeze, which `again` tells. */
#define MAKE(got, again, call)                                                                     \
    do                                                                                             \
        (got) = (call);                                                                            \
    while ((got) < 0 && (again))

#endif
