#include "os/handlers.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LEVELS 16  /* how many different handlers of the program can be chained, in all */
#define SIGNALS 64 /* the highest signal number of Linux */

/* A handler of the program's that was found, and has ours before it. */
static struct level {
    _Atomic bool taken;
    _Atomic bool known; /* before is filled in, and never changes */
    _Atomic bool spent; /* SA_RESETHAND: it has been called */
    int number;         /* of the signal */
    struct sigaction before;
} levels[LEVELS];

static _Atomic(const struct fault_claim *) claims[FAULT_CAUSES];

void handlers_ask(enum fault_cause cause, const struct fault_claim *claim)
{
    atomic_store(&claims[cause], claim);
}

static bool is_claimed(int number, const siginfo_t *info)
{
    for (int cause = 0; cause < FAULT_CAUSES; cause++) {
        const struct fault_claim *claim = atomic_load(&claims[cause]);
        if (claim && claim->claims(number, info))
            return true;
    }
    return false;
}

static bool is_handler(const struct sigaction *action)
{
    return action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN;
}

/*
 * Ends the process as the kernel's default action would, with the same siginfo: a fault comes again
 * by itself when this handler returns; a signal that was sent is sent again.
 */
static void die(int number, siginfo_t *info, bool sent)
{
    struct sigaction fatal = {.sa_handler = SIG_DFL};
    sigaction(number, &fatal, NULL);
    if (sent)
        syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), number, info);
}

/*
 * Calls a handler of the program's as the kernel would, with the signals blocked that it asked for.
 * The mask is put back here, since our handler may itself have been called by another handler, and
 * not by the kernel, which would do so.
 */
static void call(const struct sigaction *action, int number, siginfo_t *info, void *context)
{
    sigset_t blocked = action->sa_mask, outer;
    if (!(action->sa_flags & SA_NODEFER))
        sigaddset(&blocked, number);
    pthread_sigmask(SIG_BLOCK, &blocked, &outer);
    const struct fault_claim *host = atomic_load(&claims[FAULT_OF_FREEZING]);
    bool guest = sigismember(&blocked, SIGSEGV) == 1 && host && host->enter_guest();
    if (action->sa_flags & SA_SIGINFO)
        action->sa_sigaction(number, info, context);
    else
        action->sa_handler(number);
    if (guest)
        host->leave_guest();
    pthread_sigmask(SIG_SETMASK, &outer, NULL);
}

static void hand_on(struct level *level, int number, siginfo_t *info, void *context)
{
    const struct sigaction *before = &level->before;
    bool sent = info->si_code <= 0; /* by kill or raise, not by an access */
    if (sent && before->sa_handler == SIG_IGN)
        return;
    bool once = is_handler(before) && before->sa_flags & SA_RESETHAND;
    if (!is_handler(before) || (once && atomic_exchange(&level->spent, true)))
        die(number, info, sent);
    else
        call(before, number, info, context);
}

static void on_signal(struct level *level, int number, siginfo_t *info, void *context)
{
    int saved = errno;
    bool ours = is_claimed(number, info);
    errno = saved;
    if (!ours)
        hand_on(level, number, info, context);
}

/* clang-format off */
#define EACH_LEVEL(DO)                                                                             \
    DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)                                                \
    DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15)
/* clang-format on */

#define FUNCTION(i)                                                                                \
    static void on_signal_##i(int number, siginfo_t *info, void *context)                          \
    {                                                                                              \
        on_signal(&levels[i], number, info, context);                                              \
    }
EACH_LEVEL(FUNCTION)

#define ADDRESS(i) on_signal_##i,
static void (*const functions[LEVELS])(int, siginfo_t *, void *) = {EACH_LEVEL(ADDRESS)};

static bool is_ours(const struct sigaction *action)
{
    for (int i = 0; i < LEVELS; i++)
        if (action->sa_flags & SA_SIGINFO && action->sa_sigaction == functions[i])
            return true;
    return false;
}

static bool is_same(const struct sigaction *one, const struct sigaction *two)
{
    bool same = one->sa_handler == two->sa_handler && one->sa_flags == two->sa_flags;
    for (int number = 1; number <= SIGNALS && same; number++)
        same = sigismember(&one->sa_mask, number) == sigismember(&two->sa_mask, number);
    return same;
}

static int level_before(int number, const struct sigaction *action)
{
    for (int i = 0; i < LEVELS; i++)
        if (atomic_load(&levels[i].known) && levels[i].number == number &&
            is_same(&levels[i].before, action)) {
            atomic_store(&levels[i].spent, false);
            return i;
        }
    for (int i = 0; i < LEVELS; i++)
        if (!atomic_exchange(&levels[i].taken, true)) {
            levels[i].before = *action;
            levels[i].number = number;
            atomic_store(&levels[i].known, true);
            return i;
        }
    return -EBUSY;
}

/*
 * Our handler, to be installed before one of the program's, whose choice of the stack and of
 * restarting system calls it keeps.  SA_NODEFER and an empty mask let a guarded read jump out of it
 * with nothing to restore; call() blocks what the program's handler asked for.
 */
static struct sigaction ours_before(const struct sigaction *action, int level)
{
    int kept = SA_ONSTACK | SA_RESTART;
    int flags = is_handler(action) ? action->sa_flags & kept : kept;
    return (struct sigaction){.sa_sigaction = functions[level],
                              .sa_flags = SA_SIGINFO | SA_NODEFER | flags};
}

static int install(int number)
{
    struct sigaction found, replaced, ours;
    if (sigaction(number, NULL, &found) < 0)
        return -errno;
    while (!is_ours(&found)) {
        int level = level_before(number, &found);
        if (level < 0)
            return level;
        ours = ours_before(&found, level);
        if (sigaction(number, &ours, &replaced) < 0)
            return -errno;
        if (is_same(&replaced, &found))
            return 0;
        found = replaced; /* another thread has just installed that one: ours must come before it */
    }
    return 0;
}

/* glibc keeps two signals to itself, which it does not tell of. */
static bool blocks_faults(int number, struct sigaction *found)
{
    return sigaction(number, NULL, found) == 0 && is_handler(found) &&
           sigismember(&found->sa_mask, SIGSEGV) == 1;
}

/*
 * Another thread may install a handler between the look and the change, which then has to come back:
 * so what was replaced is put there again, until it is what was to be replaced.
 */
static void let_faults_into(int number)
{
    struct sigaction found, last, replaced;
    if (!blocks_faults(number, &found))
        return;
    for (last = found;; found = replaced) {
        sigdelset(&found.sa_mask, SIGSEGV);
        if (sigaction(number, &found, &replaced) < 0 || is_same(&replaced, &last))
            return;
        last = found;
    }
}

void handlers_let_faults_in(void)
{
    for (int number = 1; number <= SIGNALS; number++)
        if (number != SIGSEGV && number != SIGBUS)
            let_faults_into(number);
}

int handlers_install(void)
{
    int error = install(SIGSEGV);
    return error ? error : install(SIGBUS);
}
