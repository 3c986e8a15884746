/*
 * Waiting for other processes, with no lock in hand.
 */
#ifndef KSMPY_STORE_PATIENCE_H
#define KSMPY_STORE_PATIENCE_H

#include <stdbool.h>
#include <stdint.h>

#define PATIENCE_MS 5000 /* with who holds the lock, or that of who attaches */

struct patience {
    uint64_t last; /* attempt; 0: none yet */
    uint64_t waited; /* for others, in ns: not while this process was stopped itself */
};

/*
 * After an attempt that says -EAGAIN: sleeps, and true; or false, and -ETIMEDOUT, when PATIENCE_MS
 * have passed.  False after any other result.
 */
bool try_again(struct patience *patience, int *error);

#endif
