/*
 * What needs a free descriptor when the process has none.
 *
 * To open a file takes a number, and all may be in use.  One that is kept in
 * reserve is lost at once: between the close() that frees it and the open()
 * another thread takes it, one that waits for a connection for example.  So the
 * work is done by a thread that has a table of descriptors of its own, a copy,
 * in which it closes one: that changes nothing for anybody else.  The caller
 * sleeps until the thread has ended (CLONE_VFORK), so they share its stack and
 * its thread-local data.  No tracer is told of it, and no signal reaches it.
 */
#include "os/apart.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <unistd.h>

/* On the caller's stack, and several times what the work needs, whose buffers take a few KiB. */
#define STACK_BYTES ((size_t)32 << 10)

struct task {
    os_work *work;
    void *data;
};

static int run(void *argument)
{
    const struct task *task = argument;
    close(STDIN_FILENO); /* any number would do: no work needs this one */
    task->work(task->data);
    return 0;
}

int os_apart(os_work *work, void *data)
{
    struct task task = {work, data};
    _Alignas(64) uint8_t stack[STACK_BYTES];
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int thread = clone(run, stack + sizeof stack,
                       CLONE_VM | CLONE_VFORK | CLONE_THREAD | CLONE_SIGHAND | CLONE_FS |
                           CLONE_SYSVSEM | CLONE_UNTRACED,
                       &task);
    int error = thread < 0 ? -errno : 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}
