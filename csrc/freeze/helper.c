#include "freeze/helper.h"

#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include "os/own_memory.h"

/*
 * The thread's stack counts as the engine's own memory, so that it is never adopted: a thread whose
 * stack was frozen would wait for itself.
 */
static void note_stack(struct helper *helper)
{
    pthread_attr_t attributes;
    void *stack = NULL;
    size_t bytes = 0;
    if (pthread_getattr_np(helper->thread, &attributes) != 0)
        return;
    if (pthread_attr_getstack(&attributes, &stack, &bytes) == 0) {
        helper->stack = (uintptr_t)stack;
        helper->stack_bytes = bytes;
        os_own(helper->stack, helper->stack_bytes);
    }
    pthread_attr_destroy(&attributes);
}

/*
 * The thread starts with all signals blocked: handlers of the program's must not run on a thread
 * that the program does not know of.
 */
int helper_start(struct helper *helper, void *(*work)(void *), void *argument)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&helper->thread, NULL, work, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    helper->runs = error == 0;
    if (helper->runs)
        note_stack(helper);
    return -error;
}

void helper_join(struct helper *helper)
{
    pthread_join(helper->thread, NULL);
    os_disown(helper->stack, helper->stack_bytes);
    helper->runs = false;
}

void helper_end(struct helper *helper, int stop_fd, bool open)
{
    uint64_t one = 1;
    if (!helper->runs)
        return;
    if (!open)
        pthread_cancel(helper->thread); /* it is waiting in poll() as a rule, with no lock held */
    else
        while (write(stop_fd, &one, sizeof one) < 0 && errno == EINTR)
            ;
    helper_join(helper);
}
