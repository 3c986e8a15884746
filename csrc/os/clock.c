#include "os/clock.h"

#include <sched.h>
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

/*
 * Mostly microseconds are waited for.  But who is waited for may need this thread's processor, and a
 * yield does not give it to a thread of lower priority.
 */
#define YIELDS 64
#define NAP_US 50

void os_back_off(unsigned looks)
{
    if (looks < YIELDS)
        sched_yield();
    else
        os_sleep_us(NAP_US);
}

void os_spin(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/*
 * Early in a boot the kernel may have no random numbers yet.  Then the time, an address of the
 * stack and the process id are combined, which is easier to guess but all that there is.
 */
uint64_t os_random(void)
{
    uint64_t number;
    if (getrandom(&number, sizeof number, GRND_NONBLOCK) != (ssize_t)sizeof number)
        number = os_now_ns() ^ (uint64_t)(uintptr_t)&number << 20 ^ (uint64_t)getpid();
    return number;
}
