/*
 * What needs a free descriptor when the process has none.
 *
 * To open a file takes a number, and all may be in use.  One that is kept in
 * reserve is lost at once: between the close() that frees it and the open()
 * another thread takes it, one that waits for a connection for example.  So it
 * is asked by a thread that has a table of descriptors of its own, a copy,
 * in which it closes one: that changes nothing for anybody else.  The caller
 * sleeps until the thread has ended (CLONE_VFORK), so they share its stack and
 * its thread-local data.  No tracer is told of it, and no signal reaches it.
 */
#include "os/apart.h"

#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <unistd.h>

/* On the caller's stack, and several times what the questions need, whose buffers take a few KiB. */
#define STACK_BYTES ((size_t)32 << 10)

struct task {
    os_question_apart *ask;
    void *data;
    int answer;
};

static int run(void *argument)
{
    struct task *task = argument;
    close(STDIN_FILENO); /* any number would do: no question needs this one */
    task->answer = task->ask(task->data, true);
    return 0;
}

/* Answers as before where there is no thread to be had either. */
static int ask_apart(os_question_apart *ask, void *data, int before)
{
    struct task task = {ask, data, before};
    _Alignas(64) uint8_t stack[STACK_BYTES];
    sigset_t all, mask;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &mask);
    clone(run, stack + sizeof stack,
          CLONE_VM | CLONE_VFORK | CLONE_THREAD | CLONE_SIGHAND | CLONE_FS | CLONE_SYSVSEM |
              CLONE_UNTRACED,
          &task);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    return task.answer;
}

int os_ask(os_question_apart *ask, void *data)
{
    int answer = ask(data, false);
    return os_is_crowded(answer) ? ask_apart(ask, data, answer) : answer;
}
