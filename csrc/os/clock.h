/*
 * Time, and numbers that nobody can guess.  Nothing here fails.
 */
#ifndef KSMPY_OS_CLOCK_H
#define KSMPY_OS_CLOCK_H

#include <stdint.h>

uint64_t os_now_ns(void); /* of a clock that only goes forward */
uint64_t os_now_ms(void);
void os_sleep_us(unsigned us);
/* Between two looks at what another thread is about to change; looks: how many there were. */
void os_back_off(unsigned looks);
void os_spin(void); /* the same, for who keeps the processor meanwhile: below 0.1 us */
uint64_t os_random(void);

#endif
