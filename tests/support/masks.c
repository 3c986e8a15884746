/* A library in C that blocks signals, and writes to memory while it does; and what its threads block. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096

typedef int change_mask(int how, const sigset_t *set, sigset_t *before);

/* By the kernel's own call, which nobody leads elsewhere. */
static uint64_t blocked(void)
{
    uint64_t bits = 0;
    syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &bits, sizeof bits);
    return bits;
}

static void put_back(uint64_t bits)
{
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &bits, NULL, sizeof bits);
}

static uint64_t blocked_by(change_mask *change, int how)
{
    sigset_t all, before;
    uint64_t kept = blocked();
    sigfillset(&all);
    change(how, &all, &before);
    uint64_t bits = blocked();
    put_back(kept);
    return bits;
}

/* What a thread blocks that blocks all signals; 0 to 3: by which call. */
uint64_t masks_block_all(int which)
{
    return blocked_by(which & 1 ? sigprocmask : pthread_sigmask,
                      which & 2 ? SIG_SETMASK : SIG_BLOCK);
}

static uint64_t blocked_in_handler;

static void note(int number)
{
    (void)number;
    blocked_in_handler = blocked();
}

/* What a handler blocks for which a thread waits that blocks all others. */
uint64_t masks_suspend(void)
{
    struct sigaction action = {.sa_handler = note}, before;
    sigset_t all, one;
    uint64_t kept = blocked();
    sigaction(SIGUSR1, &action, &before);
    sigemptyset(&one);
    sigaddset(&one, SIGUSR1);
    sigprocmask(SIG_BLOCK, &one, NULL);
    pthread_kill(pthread_self(), SIGUSR1);
    sigfillset(&all);
    sigdelset(&all, SIGUSR1);
    sigsuspend(&all);
    put_back(kept);
    sigaction(SIGUSR1, &before, NULL);
    return blocked_in_handler;
}

/* ---- a thread that blocks all signals ---- */

static struct {
    pthread_t thread;
    volatile uint8_t *memory; /* NULL: it writes nothing */
    size_t pages;
    atomic_bool begun, ends;
    bool by_kernel; /* it asks the kernel itself */
} masked;

static void write_somewhere(unsigned *seed)
{
    volatile uint8_t *at = masked.memory + (size_t)rand_r(seed) % masked.pages * PAGE;
    for (int i = 0; i < 8; i++)
        at[100] ^= 1;
}

static void *go_on(void *nothing)
{
    unsigned seed = 7;
    sigset_t all;
    sigfillset(&all);
    if (masked.by_kernel)
        put_back(UINT64_MAX);
    else
        pthread_sigmask(SIG_BLOCK, &all, NULL);
    atomic_store(&masked.begun, true);
    while (!atomic_load(&masked.ends)) {
        if (masked.memory)
            write_somewhere(&seed);
        usleep((useconds_t)rand_r(&seed) % 200);
    }
    return nothing;
}

int masks_begin(void *memory, size_t pages, bool by_kernel)
{
    masked.memory = memory;
    masked.pages = pages;
    masked.by_kernel = by_kernel;
    atomic_store(&masked.begun, false);
    atomic_store(&masked.ends, false);
    int error = pthread_create(&masked.thread, NULL, go_on, NULL);
    while (!error && !atomic_load(&masked.begun))
        usleep(100);
    return error;
}

void masks_end(void)
{
    atomic_store(&masked.ends, true);
    pthread_join(masked.thread, NULL);
}
