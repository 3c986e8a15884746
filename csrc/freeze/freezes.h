/*
 * Which freezes are under way in this process, by whichever engine: for calls that a freeze may make
 * fail, and that are made without any lock of an engine's.
 *
 * Both numbers count up.  freezes_begun() > what freezes_ended() said earlier: something was frozen
 * at some moment since.
 */
#ifndef KSMPY_FREEZE_FREEZES_H
#define KSMPY_FREEZE_FREEZES_H

#include <stdbool.h>
#include <stdint.h>

/* Something is about to be frozen, and is thawed again; in any number of threads, but not in a fork. */
void freezes_begin(void);
void freezes_end(void);
uint64_t freezes_begun(void);
uint64_t freezes_ended(void);
/*
 * Waits for a moment in which nothing is frozen; false: there was none until 5 s after `since` (ns,
 * os_now_ns()).  A freeze lasts for some tenths of a millisecond, unless its thread has to wait for a
 * processor or is stopped by a debugger.
 */
bool freezes_wait(uint64_t since);

#endif
