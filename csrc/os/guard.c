#include "os/guard.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <string.h>

#include "base/checksum.h"
#include "base/pages.h"
#include "os/handlers.h"

/* The last guarded read of a thread; size 0: none is under way. */
struct guarded {
    jmp_buf place;
    uintptr_t one, two;
    volatile size_t size;
};

/*
 * Thread-local variables are allocated at their first use, which may be in the handler, where
 * nothing may be allocated.  Those of the initial-exec model exist from the thread's start.
 */
#define IN_HANDLER static __thread __attribute__((tls_model("initial-exec")))
IN_HANDLER struct guarded guarded;
IN_HANDLER struct guarded called; /* the same of guard_copy_for_call() */

static void signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGSEGV);
    sigaddset(set, SIGBUS);
}

/* Jumps out of the handler to the place, if the fault was at what is guarded. */
static bool escape_to(struct guarded *place, const siginfo_t *info)
{
    uintptr_t at = (uintptr_t)info->si_addr;
    size_t size = place->size;
    bool sent = info->si_code <= 0; /* by kill or raise, not by an access */
    if (sent || !size || (at - place->one >= size && at - place->two >= size))
        return false;
    place->size = 0;
    longjmp(place->place, 1);
}

static bool escape(int number, const siginfo_t *info)
{
    (void)number;
    return escape_to(&guarded, info);
}

static bool escape_call(int number, const siginfo_t *info)
{
    (void)number;
    return escape_to(&called, info);
}

static const struct fault_claim claim = {.claims = escape};
static const struct fault_claim claim_of_calls = {.claims = escape_call};

void guard_open(sigset_t *before)
{
    sigset_t ours;
    signals(&ours);
    handlers_ask(FAULT_OF_A_READ, &claim);
    handlers_install();
    pthread_sigmask(SIG_UNBLOCK, &ours, before);
}

void guard_close(const sigset_t *before)
{
    pthread_sigmask(SIG_SETMASK, before, NULL);
}

/*
 * _setjmp does not save the signal mask, which takes no system call: the handler blocks no further
 * signals, so there is nothing to restore.  To jump out of the read is safe because it has changed
 * nothing but variables of the function that reads.  The fences keep the compiler from moving the
 * read out from between the two stores of the size.
 */
#define GUARDED(first, second, bytes, read)                                                        \
    do {                                                                                           \
        if (_setjmp(guarded.place))                                                                \
            return false;                                                                          \
        guarded.one = (uintptr_t)(first);                                                          \
        guarded.two = (uintptr_t)(second);                                                         \
        guarded.size = (bytes);                                                                    \
        atomic_signal_fence(memory_order_seq_cst);                                                 \
        read;                                                                                      \
        atomic_signal_fence(memory_order_seq_cst);                                                 \
        guarded.size = 0;                                                                          \
        return true;                                                                               \
    } while (0)

bool guard_checksum(const struct checksum_key *key, const void *page, uint64_t *sum)
{
    GUARDED(page, page, PAGE_SIZE, *sum = checksum_keyed(key, page, PAGE_SIZE));
}

KSMPY_READS_LIVE_MEMORY bool guard_is_zero(const void *page, bool *zero)
{
    const uint8_t *bytes = page;
    GUARDED(page, page, PAGE_SIZE,
            *zero = bytes[0] == 0 && memcmp(bytes, bytes + 1, PAGE_SIZE - 1) == 0);
}

KSMPY_READS_LIVE_MEMORY bool guard_compare(const void *one, const void *two, int *order)
{
    GUARDED(one, two, PAGE_SIZE, *order = memcmp(one, two, PAGE_SIZE));
}

KSMPY_READS_LIVE_MEMORY bool guard_copy(void *to, const void *from, size_t bytes)
{
    GUARDED(from, from, bytes, memcpy(to, from, bytes));
}

void guard_calls(void)
{
    handlers_ask(FAULT_OF_A_CALL, &claim_of_calls);
}

KSMPY_READS_LIVE_MEMORY bool guard_copy_for_call(void *to, const void *from, size_t bytes)
{
    struct guarded outer = called;
    volatile bool done = false;
    if (!_setjmp(called.place)) {
        called.one = (uintptr_t)from;
        called.two = (uintptr_t)to;
        called.size = bytes;
        atomic_signal_fence(memory_order_seq_cst);
        memcpy(to, from, bytes);
        atomic_signal_fence(memory_order_seq_cst);
        done = true;
    }
    called = outer;
    return done;
}

__attribute__((noinline)) KSMPY_READS_LIVE_MEMORY static void touch(uintptr_t start, uintptr_t end,
                                                                    size_t piece)
{
    for (uintptr_t at = start; at < end; at = (at | (piece - 1)) + 1)
        (void)*(const volatile uint8_t *)at;
}

bool guard_touch(uintptr_t start, uintptr_t end, size_t piece)
{
    GUARDED(start, start, end - start, touch(start, end, piece));
}

int compare_live(const void *a, const void *b)
{
    int order;
    return guard_compare(a, b, &order) ? order : -1;
}
