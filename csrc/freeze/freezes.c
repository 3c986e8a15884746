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

bool freezes_wait(uint64_t since)
{
    uint64_t last = freezes_begun();
    while (freezes_ended() < last) {
        if (os_now_ns() - since > PATIENCE_NS)
            return false;
        os_sleep_us(BETWEEN_LOOKS_US);
    }
    return os_now_ns() - since <= PATIENCE_NS;
}
