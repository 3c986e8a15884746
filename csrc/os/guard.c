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
static __thread __attribute__((tls_model("initial-exec"))) struct guarded guarded;

static void signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGSEGV);
    sigaddset(set, SIGBUS);
}

/* Jumps out of the handler, into GUARDED(), if the fault was at a guarded read of this thread. */
static bool escape(int number, const siginfo_t *info)
{
    (void)number;
    uintptr_t at = (uintptr_t)info->si_addr;
    size_t size = guarded.size;
    bool sent = info->si_code <= 0; /* by kill or raise, not by an access */
    if (sent || !size || (at - guarded.one >= size && at - guarded.two >= size))
        return false;
    guarded.size = 0;
    longjmp(guarded.place, 1);
}

static const struct fault_claim claim = {.claims = escape};

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
