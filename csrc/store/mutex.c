#include "store/mutex.h"

#include <errno.h>
#include <pthread.h>

#include "os/clock.h"
#include "store/layout.h"

/*
 * Looks before the processor is given away, 65 us together.  Of 1.5 million holds by eight processes on
 * two processors 99.8 % took less than 4 us, so a holder that is on a processor is mostly waited for by
 * looking.  Who yields instead has a processor again when the others have had their turns, which is
 * milliseconds.  A holder that has lost its processor may need this one, hence the end.
 */
#define SPINS 400

/* Tries for limit_ns: what pthread_mutex_trylock() said last; the ns it took are in *waited. */
static int try_for(pthread_mutex_t *mutex, uint64_t limit_ns, uint64_t *waited)
{
    uint64_t begin = os_now_ns();
    int error = EBUSY;
    for (unsigned tries = 0; error == EBUSY && *waited < limit_ns; tries++) {
        if (tries < SPINS)
            os_spin();
        else
            os_back_off(tries - SPINS);
        error = pthread_mutex_trylock(mutex);
        *waited = os_now_ns() - begin;
    }
    return error;
}

int mutex_take(struct store_head *head, uint64_t limit_ns, uint64_t *waited)
{
    int error = pthread_mutex_trylock(&head->mutex);
    *waited = 0;
    if (error == EBUSY && limit_ns)
        error = try_for(&head->mutex, limit_ns, waited);
    if (error == EOWNERDEAD) {
        head->half_changed = true;
        pthread_mutex_consistent(&head->mutex);
        error = 0;
    }
    return error == EBUSY ? -EAGAIN : error ? -EUCLEAN : 0;
}

void mutex_give(struct store_head *head)
{
    pthread_mutex_unlock(&head->mutex);
}
