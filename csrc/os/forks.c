#include "os/forks.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>

#include "base/checksum.h"

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

/*
 * The kernel gives each program that it starts 16 bytes at random, which a fork leaves as they are.
 * The C library makes its stack guards of them, so what is shown to others is a checksum.
 */
uint64_t os_kin(void)
{
    uint64_t words[8] = {0};
    const void *given = (const void *)getauxval(AT_RANDOM);
    if (given)
        memcpy(words, given, 16);
    return checksum_of(words, sizeof words);
}

uint64_t os_pid_namespace(void)
{
    struct stat info;
    return stat("/proc/self/ns/pid", &info) == 0 ? info.st_ino : 0;
}
