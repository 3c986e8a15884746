#include "os/clock.h"

#include <sys/random.h>
#include <time.h>
#include <unistd.h>

uint64_t os_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

uint64_t os_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void os_sleep_us(unsigned us)
{
    struct timespec span = {.tv_nsec = (long)us * 1000};
    nanosleep(&span, NULL);
}

/* Early in a boot there may be none: then where things lie, and when, is all that is not known. */
uint64_t os_random(void)
{
    uint64_t number;
    if (getrandom(&number, sizeof number, GRND_NONBLOCK) != (ssize_t)sizeof number)
        number = os_now_ns() ^ (uint64_t)(uintptr_t)&number << 20 ^ (uint64_t)getpid();
    return number;
}
