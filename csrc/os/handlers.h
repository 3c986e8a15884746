/*
 * Signal handlers: the engine's, and the program's behind it.
 *
 * The engine's has to be the one that the kernel calls.  What is not the
 * engine's goes to the handler that was there before, which is called as the
 * kernel would have called it, as often as it comes: with its mask, on the
 * stack it asked for, once if it asked for that (SA_RESETHAND).  It may leave
 * by siglongjmp, so nothing here waits for it to come back.
 *
 * A handler that the program installs later may keep the engine's and hand on
 * to it, or put it back.  So each handler that was found has a function of its
 * own before it, for ever, and no chain can come back to itself.
 */
#ifndef KSMPY_OS_HANDLERS_H
#define KSMPY_OS_HANDLERS_H

#include <signal.h>
#include <stdbool.h>

/* Who may have caused a fault of SIGSEGV or SIGBUS, in the order in which they are asked. */
enum fault_cause { FAULT_OF_A_READ, FAULT_OF_FREEZING, FAULT_OF_A_CALL, FAULT_CAUSES };

struct fault_claim {
    /* In the handler: true: it was a fault of ours, and is over. */
    bool (*claims)(int number, const siginfo_t *info);
    /*
     * A handler of the program's is about to run with SIGSEGV blocked.  true: leave_guest() is to be
     * called when it returns.  Only FAULT_OF_FREEZING has these two.
     */
    bool (*enter_guest)(void);
    void (*leave_guest)(void);
};

/* From now on they are asked. Nothing comes to them before handlers_install(). */
void handlers_ask(enum fault_cause cause, const struct fault_claim *claim);

/*
 * From now on SIGSEGV and SIGBUS come to the engine first; to be called again before each time that
 * it has to be so, as the program may have installed a handler since.  EBUSY: it has had too many.
 */
int handlers_install(void);

/*
 * From now on the program's handlers of other signals do not block SIGSEGV, as those that block all
 * signals do: a thread that faults in one would not wait, the kernel would end the process.
 */
void handlers_let_faults_in(void);

#endif
