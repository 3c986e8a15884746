#include "freeze/signal_masks.h"

#include <stdbool.h>

#include "freeze/signal.h"
#include "os/guard.h"

/*
 * Is it to block SIGSEGV, which is not to be blocked?  Then *own is to be set in its place.  A set
 * that cannot be read is the kernel's to refuse.
 */
static bool blocks_faults(const sigset_t *set, sigset_t *own)
{
    if (!set || !signal_is_in_use() || !guard_copy_for_call(own, set, sizeof *own) ||
        sigismember(own, SIGSEGV) != 1)
        return false;
    sigdelset(own, SIGSEGV);
    return true;
}

int signal_masks_pthread_sigmask(int how, const sigset_t *set, sigset_t *before)
{
    sigset_t own;
    bool blocks = how != SIG_UNBLOCK && blocks_faults(set, &own);
    return pthread_sigmask(how, blocks ? &own : set, before);
}

int signal_masks_sigprocmask(int how, const sigset_t *set, sigset_t *before)
{
    sigset_t own;
    bool blocks = how != SIG_UNBLOCK && blocks_faults(set, &own);
    return sigprocmask(how, blocks ? &own : set, before);
}

int signal_masks_sigsuspend(const sigset_t *set)
{
    sigset_t own;
    return sigsuspend(blocks_faults(set, &own) ? &own : set);
}
