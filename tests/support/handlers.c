/*
 * A program with a SIGSEGV handler of its own, which writes down how it was
 * called.  The same run with and without the engine has to give the same text.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define NOWHERE 8

enum leaving { LEAP, REPAIR, UNBLOCK_AND_LEAP, FAULT_AGAIN, RETURN };

static enum leaving leaving;
static sigjmp_buf back;
static unsigned char *page;
static int calls, depth;
static volatile unsigned char *to_write; /* by the handler, before it leaves */
static double write_seconds;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void say_mask(const char *what, const sigset_t *set)
{
    char text[80];
    uint64_t bits = 0;
    for (int number = 1; number < 64; number++)
        bits |= (uint64_t)(sigismember(set, number) == 1) << (number - 1);
    int length = snprintf(text, sizeof text, " %s %llx", what, (unsigned long long)bits);
    if (write(1, text, (size_t)length) < 0)
        abort();
}

static void say(const siginfo_t *info, const ucontext_t *context)
{
    char text[160];
    sigset_t blocked;
    stack_t stack;
    sigaltstack(NULL, &stack);
    sigprocmask(SIG_BLOCK, NULL, &blocked);
    uintptr_t fault = info && info->si_code > 0 ? (uintptr_t)info->si_addr : 0;
    const char *where = fault == (uintptr_t)page ? "page" : fault == NOWHERE ? "nowhere" : "?";
    int length = snprintf(text, sizeof text, "call %d: code %d at %s errno %d stack %d", calls,
                          info ? info->si_code : 0, where, errno, stack.ss_flags);
    if (write(1, text, (size_t)length) < 0)
        abort();
    say_mask("blocked", &blocked);
    if (context)
        say_mask("before", &context->uc_sigmask);
    if (write(1, "\n", 1) < 0)
        abort();
}

static void leave(int number)
{
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, number);
    for (double end = now() + write_seconds; to_write && now() < end;)
        for (int i = 0; i < 64; i++)
            to_write[i * PAGE]++;
    if (leaving == FAULT_AGAIN && depth++ == 0)
        page[0] = 1;
    if (leaving == REPAIR)
        mprotect(page, PAGE, PROT_READ | PROT_WRITE);
    if (leaving == UNBLOCK_AND_LEAP) {
        sigprocmask(SIG_UNBLOCK, &one, NULL);
        longjmp(back, 1);
    }
    if (leaving == LEAP || leaving == FAULT_AGAIN)
        siglongjmp(back, 1);
}

static void with_info(int number, siginfo_t *info, void *context)
{
    calls++;
    say(info, context);
    leave(number);
}

static void plain(int number)
{
    calls++;
    say(NULL, NULL);
    leave(number);
}

/* kind: 0 plain, 1 with siginfo, 2 ignored, 3 the default action. */
void handlers_install_one(int kind, int flags, int masked, int how)
{
    struct sigaction action = {.sa_flags = flags | (kind == 1 ? SA_SIGINFO : 0)};
    if (masked)
        sigaddset(&action.sa_mask, masked);
    if (kind == 1)
        action.sa_sigaction = with_info;
    else
        action.sa_handler = kind == 0 ? plain : kind == 2 ? SIG_IGN : SIG_DFL;
    leaving = how;
    sigaction(SIGSEGV, &action, NULL);
}

void handlers_open(void)
{
    stack_t stack = {.ss_sp = malloc(1 << 18), .ss_size = 1 << 18};
    sigaltstack(&stack, NULL);
    page = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* While the handler runs, for so long, it writes to 64 pages from here on. */
void handlers_write(unsigned char *memory, double seconds)
{
    to_write = memory;
    write_seconds = seconds;
}

/* access: 0 writes to a page that may only be read, 1 reads what is not mapped, 2 raises. */
void handlers_probe(int access)
{
    volatile uintptr_t nowhere = NOWHERE;
    mprotect(page, PAGE, PROT_READ);
    depth = 0;
    errno = 77;
    if (sigsetjmp(back, leaving != UNBLOCK_AND_LEAP))
        return;
    if (access == 0)
        page[0] = 1;
    else if (access == 1)
        (void)*(volatile unsigned char *)nowhere;
    else
        raise(SIGSEGV);
}

int handlers_calls(void)
{
    return calls;
}
