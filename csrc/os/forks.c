#include "os/forks.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int atfork_error;
static _Atomic(const struct fork_calls *) called;

static void before(void)
{
    pthread_mutex_lock(&lock);
    const struct fork_calls *calls = atomic_load(&called);
    if (calls)
        calls->before();
}

static void in_parent(void)
{
    const struct fork_calls *calls = atomic_load(&called);
    if (calls)
        calls->in_parent();
    pthread_mutex_unlock(&lock);
}

static void in_child(void)
{
    const struct fork_calls *calls = atomic_load(&called);
    if (calls)
        calls->in_child();
    pthread_mutex_init(&lock, NULL);
}

static void set_up(void)
{
    atfork_error = -pthread_atfork(before, in_parent, in_child);
}

int forks_call(const struct fork_calls *calls)
{
    fork_hold(); /* a fork that has begun ends without them */
    atomic_store(&called, calls);
    fork_let_go();
    return atfork_error;
}

void fork_hold(void)
{
    pthread_once(&once, set_up);
    pthread_mutex_lock(&lock);
}

void fork_let_go(void)
{
    pthread_mutex_unlock(&lock);
}
