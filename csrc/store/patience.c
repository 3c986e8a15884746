#include "store/patience.h"

#include <errno.h>

#include "base/pages.h"
#include "os/clock.h"

/*
 * The most ns between two attempts that count as waited.  If more have passed this process was
 * stopped itself, and has not waited for anybody.
 */
#define STEP_NS 100000000

bool try_again(struct patience *patience, int *error)
{
    uint64_t now = os_now_ns();
    if (*error != -EAGAIN)
        return false;
    if (patience->last)
        patience->waited += least(now - patience->last, STEP_NS);
    patience->last = now;
    if (patience->waited > PATIENCE_MS * (uint64_t)1000000) {
        *error = -ETIMEDOUT;
        return false;
    }
    os_sleep_us(1000);
    return true;
}
