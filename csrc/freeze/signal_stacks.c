#include "freeze/signal_stacks.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/pages.h"
#include "freeze/freezes.h"
#include "os/clock.h"
#include "os/tasks.h"

/*
 * Stacks of so many threads at once are known.  A range is three words, and all of them are looked
 * at before each freeze, as far as they were ever used.
 */
#define THREADS_MAX 1024

/* [start, end); end is 0 where there is none.  A reader sees all of it or none, if it reads the end first. */
struct range {
    _Atomic uintptr_t start, end;
};

/*
 * Changed by its own thread only, in the order in which others may need it: `next` is there until
 * `now` is, which is there before `next` goes.  So readers ask for `next` first.
 */
static struct thread {
    _Atomic uint32_t id; /* 0: free */
    struct range next, now;
} threads[THREADS_MAX];

static _Atomic size_t used; /* no later one was ever taken */

static void clear(struct range *range)
{
    atomic_store(&range->end, 0);
}

static void set(struct range *range, const stack_t *stack)
{
    uintptr_t start = (uintptr_t)stack->ss_sp;
    clear(range);
    atomic_store(&range->start, start);
    atomic_store(&range->end, start + stack->ss_size);
}

/* A thread that has ended needs no stack any more, though it may have said nothing: its place is free. */
static bool is_over(struct thread *thread)
{
    uint32_t id = atomic_load(&thread->id);
    if (id && os_task_lives(id))
        return false;
    atomic_compare_exchange_strong(&thread->id, &id, 0);
    return true;
}

/* Takes a place that is free. */
static bool take(struct thread *thread, uint32_t id)
{
    uint32_t nobody = 0;
    if (!atomic_compare_exchange_strong(&thread->id, &nobody, id))
        return false;
    clear(&thread->next);
    clear(&thread->now);
    return true;
}

/* NULL: there are stacks of so many threads already. */
static struct thread *own(void)
{
    uint32_t id = (uint32_t)syscall(SYS_gettid);
    size_t n = atomic_load(&used);
    for (size_t i = 0; i < n; i++)
        if (atomic_load(&threads[i].id) == id)
            return &threads[i];
    for (int dead = 0; dead < 2; dead++)
        for (size_t i = 0; i < THREADS_MAX; i++) {
            if ((dead && !is_over(&threads[i])) || !take(&threads[i], id))
                continue;
            while (n <= i && !atomic_compare_exchange_weak(&used, &n, i + 1))
                ;
            return &threads[i];
        }
    return NULL;
}

int signal_stacks_set(const stack_t *stack, stack_t *before)
{
    int error = errno;
    struct thread *thread = stack ? own() : NULL;
    if (thread && !(stack->ss_flags & SS_DISABLE)) {
        set(&thread->next, stack);
        freezes_wait(os_now_ns());
    }
    errno = error;
    int got = sigaltstack(stack, before);
    if (thread && got == 0 && stack->ss_flags & SS_DISABLE)
        clear(&thread->now);
    else if (thread && got == 0)
        set(&thread->now, stack);
    if (thread)
        clear(&thread->next);
    return got;
}

void signal_stacks_note_own(void)
{
    stack_t stack;
    struct thread *thread = own();
    if (!thread || sigaltstack(NULL, &stack) < 0 || stack.ss_flags & SS_DISABLE)
        return;
    uintptr_t start = (uintptr_t)stack.ss_sp, end = start + stack.ss_size;
    if (atomic_load(&thread->now.start) != start || atomic_load(&thread->now.end) != end)
        set(&thread->now, &stack); /* else it is known: it must not be unknown for a moment */
}

/* What comes before the range, of n pages. */
static uint64_t before(const struct range *range, uintptr_t address, uint64_t n)
{
    uintptr_t end = atomic_load(&range->end), start = atomic_load(&range->start);
    if (end <= address || start >= address + bytes_of(n))
        return n;
    return start <= address ? 0 : (start - address) >> PAGE_SHIFT;
}

uint64_t signal_stacks_before(uintptr_t address, uint64_t n)
{
    size_t count = atomic_load(&used);
    for (size_t i = 0; i < count; i++) {
        uint64_t rest = before(&threads[i].next, address, n);
        rest = before(&threads[i].now, address, rest);
        if (rest < n && !is_over(&threads[i]))
            n = rest;
    }
    return n;
}
