#include "freeze/freezes.h"

#include <stdatomic.h>

#include "os/clock.h"

#define PATIENCE_NS ((uint64_t)5000000000)
#define BETWEEN_LOOKS_US 20

static _Atomic uint64_t begun, ended;

void freezes_begin(void)
{
    atomic_fetch_add(&begun, 1);
}

void freezes_end(void)
{
    atomic_fetch_add(&ended, 1);
}

uint64_t freezes_begun(void)
{
    return atomic_load(&begun);
}

uint64_t freezes_ended(void)
{
    return atomic_load(&ended);
}

/*
 * As many may have ended as had begun by then, though one of those is still under way: where there
 * are several engines, others end that began later.  Nothing is frozen when both numbers are equal,
 * and ended is read first, so that it was so at that moment.
 */
static bool is_all_thawed(void)
{
    uint64_t over = freezes_ended();
    return freezes_begun() == over;
}

bool freezes_wait(uint64_t since)
{
    while (!is_all_thawed()) {
        if (os_now_ns() - since > PATIENCE_NS)
            return false;
        os_sleep_us(BETWEEN_LOOKS_US);
    }
    return os_now_ns() - since <= PATIENCE_NS;
}
