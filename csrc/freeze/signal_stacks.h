/*
 * Alternate signal stacks of this process's threads (sigaltstack(2)): where nothing may be frozen.
 *
 * The kernel writes a signal's frame onto such a stack.  Where its accesses to frozen pages fail
 * instead of waiting (freeze/bystanders.h), it ends the process with SIGSEGV, and no handler can do
 * anything about that.  Nobody tells where the threads have these stacks.  Known are those that
 * libraries in C set once their calls are led here (freeze/retries.h), and those of the thread that
 * makes an engine and of the main thread.
 *
 *   sigaltstack()  notes the stack, waits for what is frozen by then, and makes the call
 *   freezing       begins (freezes_begin()), and then looks whether a stack was noted
 *
 * So of a stack and a freeze that come at the same time, one sees the other.  A thread that has ended
 * has no stack any more, though it may not have said so.
 */
#ifndef KSMPY_FREEZE_SIGNAL_STACKS_H
#define KSMPY_FREEZE_SIGNAL_STACKS_H

#include <signal.h>
#include <stdint.h>

/* sigaltstack(2).  A handler of a signal may call it. */
int signal_stacks_set(const stack_t *stack, stack_t *before);
/* Notes the one that the calling thread has. */
void signal_stacks_note_own(void);
/* How many of n pages, from the first one on, come before the first with a stack in it. */
uint64_t signal_stacks_before(uintptr_t address, uint64_t n);

#endif
