#include "freeze/bystanders.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "freeze/helper.h"
#include "os/calls.h"
#include "os/clock.h"

/*
 * How long the interpreter's lock is waited for, in ns.  A thread that runs Python code hands it on
 * after 5 ms (sys.getswitchinterval()), or later if it has to wait for a processor.  One that keeps
 * it longer runs C code.  Who waits for the engine meanwhile has let go of the interpreter's lock,
 * unless it forks, and a fork is not kept waiting.
 */
#define WAIT_NS 200000000L
/* How long it is not asked for again then, in ns. */
#define PAUSE_NS ((uint64_t)50000000)
/*
 * How long a patient caller waits for threads that run, in ns: until one that computes was seen to
 * do so (os/calls.c), and some time more.
 */
#define PATIENCE_NS ((uint64_t)300000000)
#define BETWEEN_TRIES_US 2000
/*
 * How often, and how many us apart, a fork looks whether the thread comes back with the lock: it may
 * have it already and be about to say so.  For longer it is not waited, as who forks may have it.
 */
#define SURFACING 5
#define BETWEEN_LOOKS_US 20
#define END_MS 1000 /* how long the thread's end is waited for, which may never come */

/*
 * The thread that takes the interpreter's lock, for all engines.  It is a thread of its own because
 * to take the lock is to wait until one has it, and who wants it can only wait so long.
 */
static struct {
    take_interpreter *take;
    return_interpreter *give_back;
    atomic_bool known; /* there is an interpreter, or was */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* its limits are of the clock that only goes forward */
    struct helper helper;
    long thread;
    int users;  /* freezers that may want the interpreter's lock */
    int wanted; /* by how many of them it is wanted or held */
    bool taking; /* from before it takes the lock until it has given it back */
    atomic_bool has; /* it has the lock, or has not given it back yet */
    bool taken; /* it has the lock, for those who want it */
    bool ends, gone; /* the thread is to end; and does nothing more */
    int forks;
    uint64_t not_before; /* ns */
} keeper = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

/* ---- the thread ---- */

static void wait_for_change(void)
{
    pthread_cond_wait(&keeper.changed, &keeper.lock);
}

static void tell_change(void)
{
    pthread_cond_broadcast(&keeper.changed);
}

/* Whoever wants the lock waits in vain, and gives up. */
static void not_taken(void)
{
    pthread_mutex_lock(&keeper.lock);
    keeper.taking = false;
    tell_change();
    if (keeper.wanted && !keeper.ends)
        wait_for_change();
}

/*
 * The interpreter's lock is given back after each freeze, so that each thread that waits for it gets
 * its turn.
 */
static void keep_once(void)
{
    take_interpreter *take = keeper.take;
    return_interpreter *give_back = keeper.give_back;
    keeper.taking = true;
    pthread_mutex_unlock(&keeper.lock);
    int state = take();
    if (state < 0) {
        not_taken();
        return;
    }
    atomic_store(&keeper.has, true);
    pthread_mutex_lock(&keeper.lock);
    keeper.taken = keeper.wanted > 0;
    tell_change();
    while (keeper.taken)
        wait_for_change();
    pthread_mutex_unlock(&keeper.lock);
    give_back(state);
    pthread_mutex_lock(&keeper.lock);
    atomic_store(&keeper.has, false);
    keeper.taking = false;
    tell_change();
}

/*
 * The interpreter's memory may be merged, and frozen by another engine while this thread writes to
 * it: in the mode signal it waits in the handler then.
 */
static void let_faults_in(void)
{
    sigset_t faults;
    sigemptyset(&faults);
    sigaddset(&faults, SIGSEGV);
    sigaddset(&faults, SIGBUS);
    pthread_sigmask(SIG_UNBLOCK, &faults, NULL);
}

static void *keep(void *nothing)
{
    let_faults_in();
    pthread_mutex_lock(&keeper.lock);
    keeper.thread = syscall(SYS_gettid);
    while (!keeper.ends)
        if (keeper.wanted && keeper.take)
            keep_once();
        else
            wait_for_change();
    keeper.gone = true;
    tell_change();
    pthread_mutex_unlock(&keeper.lock);
    return nothing;
}

/* ---- who wants the lock ---- */

static void make_condition(void)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&keeper.changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

static bool wait_until(const struct timespec *deadline)
{
    return pthread_cond_timedwait(&keeper.changed, &keeper.lock, deadline) != ETIMEDOUT;
}

static struct timespec in_ns(long ns)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_nsec += ns;
    at.tv_sec += at.tv_nsec / 1000000000;
    at.tv_nsec %= 1000000000;
    return at;
}

static void want_no_more(void)
{
    if (--keeper.wanted == 0)
        keeper.taken = false;
    tell_change();
}

static void join_if_gone(void)
{
    if (keeper.gone)
        helper_join(&keeper.helper);
    keeper.gone = false;
}

/* The thread may still wait for the interpreter's lock since it was told to end: it goes on then. */
static bool has_thread(void)
{
    keeper.ends = false;
    join_if_gone();
    return keeper.helper.runs || helper_start(&keeper.helper, keep, NULL) == 0;
}

static bool can_take(void)
{
    bool pauses = keeper.forks || os_now_ns() < keeper.not_before;
    return keeper.take && !pauses && has_thread();
}

static bool take_interpreter_lock(void)
{
    struct timespec deadline = in_ns(WAIT_NS);
    pthread_mutex_lock(&keeper.lock);
    bool can = can_take();
    keeper.wanted += can;
    if (can)
        tell_change();
    for (bool more = can; more && !keeper.taken && !keeper.forks;)
        more = wait_until(&deadline);
    bool taken = can && keeper.taken;
    if (can && !taken) {
        want_no_more();
        keeper.not_before = keeper.forks ? 0 : os_now_ns() + PAUSE_NS;
    }
    pthread_mutex_unlock(&keeper.lock);
    return taken;
}

static void return_interpreter_lock(void)
{
    pthread_mutex_lock(&keeper.lock);
    want_no_more();
    pthread_mutex_unlock(&keeper.lock);
}

static bool are_to_be_held(const struct bystanders *bystanders)
{
    return bystanders->matter && atomic_load(&keeper.known);
}

/* -EAGAIN: it may be had soon. */
static int hold_once(struct bystanders *bystanders, int tasks_fd, uintptr_t address, uint64_t n)
{
    if (!take_interpreter_lock())
        return -EBUSY;
    int busy = os_calls(&bystanders->runners, tasks_fd, keeper.thread, address, n);
    bystanders->held = !busy;
    if (busy)
        return_interpreter_lock();
    return busy;
}

/* Only who runs is waited for, since who waits in a call may do so for hours. */
static bool is_patient(const struct bystanders *bystanders)
{
    return os_now_ns() < bystanders->patient_until && !atomic_load(bystanders->awaited);
}

bool bystanders_hold(struct bystanders *bystanders, int tasks_fd, uintptr_t address, uint64_t n)
{
    if (!are_to_be_held(bystanders))
        return true;
    int busy = hold_once(bystanders, tasks_fd, address, n);
    while (busy == -EAGAIN && is_patient(bystanders)) {
        os_sleep_us(BETWEEN_TRIES_US);
        busy = hold_once(bystanders, tasks_fd, address, n);
    }
    return !busy;
}

void bystanders_be_patient(struct bystanders *bystanders, const _Atomic int *awaited)
{
    bystanders->awaited = awaited;
    bystanders->patient_until = os_now_ns() + PATIENCE_NS;
}

void bystanders_hold_if_can(struct bystanders *bystanders, int tasks_fd, uintptr_t address,
                            uint64_t n)
{
    if (!are_to_be_held(bystanders) || !take_interpreter_lock())
        return;
    bystanders->held = true;
    os_calls(&bystanders->runners, tasks_fd, keeper.thread, address, n); /* waits for the running */
}

void bystanders_let_go(struct bystanders *bystanders)
{
    if (bystanders->held)
        return_interpreter_lock();
    bystanders->held = false;
}

/* ---- beginning and end ---- */

void bystanders_know_interpreter(take_interpreter *take, return_interpreter *give_back)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_condition);
    pthread_mutex_lock(&keeper.lock);
    keeper.take = take;
    keeper.give_back = give_back;
    atomic_store(&keeper.known, take != NULL);
    pthread_mutex_unlock(&keeper.lock);
}

void bystanders_interpreter_ends(void)
{
    struct timespec deadline = in_ns(END_MS * 1000000L);
    pthread_mutex_lock(&keeper.lock);
    keeper.take = NULL;
    for (bool more = keeper.helper.runs; more && keeper.taking;)
        more = wait_until(&deadline);
    pthread_mutex_unlock(&keeper.lock);
}

void bystanders_open(struct bystanders *bystanders, bool matter)
{
    *bystanders = (struct bystanders){.matter = matter};
    pthread_mutex_lock(&keeper.lock);
    keeper.users += matter;
    pthread_mutex_unlock(&keeper.lock);
}

/* If the interpreter keeps it waiting for too long, the thread ends later, by itself. */
static void end_thread(void)
{
    struct timespec deadline = in_ns(END_MS * 1000000L);
    keeper.ends = true;
    tell_change();
    for (bool more = true; more && !keeper.gone && keeper.ends;)
        more = wait_until(&deadline);
    join_if_gone();
}

/* The thread ends with the last freezer that may want it. */
void bystanders_close(struct bystanders *bystanders)
{
    pthread_mutex_lock(&keeper.lock);
    keeper.users -= bystanders->matter;
    if (bystanders->matter && !keeper.users && keeper.helper.runs)
        end_thread();
    bystanders->matter = false;
    pthread_mutex_unlock(&keeper.lock);
}

void bystanders_forget(void)
{
    pthread_mutex_init(&keeper.lock, NULL);
    make_condition();
    keeper.helper.runs = keeper.taking = keeper.taken = keeper.ends = keeper.gone = false;
    keeper.users = keeper.wanted = keeper.forks = 0;
    atomic_store(&keeper.has, false);
}

void bystanders_hurry(void)
{
    pthread_mutex_lock(&keeper.lock);
    keeper.forks++;
    tell_change();
    pthread_mutex_unlock(&keeper.lock);
}

void bystanders_settle(void)
{
    pthread_mutex_lock(&keeper.lock);
    for (int looks = 0; keeper.taking && !atomic_load(&keeper.has) && looks < SURFACING; looks++) {
        pthread_mutex_unlock(&keeper.lock);
        os_sleep_us(BETWEEN_LOOKS_US);
        pthread_mutex_lock(&keeper.lock);
    }
    while (atomic_load(&keeper.has))
        wait_for_change();
    pthread_mutex_unlock(&keeper.lock);
}

void bystanders_need_not_hurry(void)
{
    pthread_mutex_lock(&keeper.lock);
    keeper.forks--;
    pthread_mutex_unlock(&keeper.lock);
}
