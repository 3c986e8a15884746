/*
 * The lock of a store: who waits for it, for how long, and what is not done while it is held.
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/pages.h"
#include "check.h"
#include "holes.h"
#include "os/clock.h"
#include "pair.h"
#include "store/announce.h"
#include "store/attach.h"
#include "store/board.h"
#include "store/check.h"
#include "store/lock.h"
#include "store/reap.h"

/* The most bytes of the file that were asked for, or given back, at once with the lock held. */
static uint64_t most_at_once;
static void note_bytes(uint64_t bytes)
{
    if ((one.depth || two.depth) && bytes > most_at_once)
        most_at_once = bytes;
}

int __real_os_allocate(int fd, uint64_t offset, uint64_t bytes);
int __wrap_os_allocate(int fd, uint64_t offset, uint64_t bytes)
{
    note_bytes(bytes);
    return __real_os_allocate(fd, offset, bytes);
}

int __real_os_punch(int fd, uint64_t offset, uint64_t bytes);
int __wrap_os_punch(int fd, uint64_t offset, uint64_t bytes)
{
    note_bytes(bytes);
    return __real_os_punch(fd, offset, bytes);
}

static uint64_t stopped_clock; /* what the clock says all the time; 0: it goes */
static unsigned clock_calls;
uint64_t __real_os_now_ns(void);
uint64_t __wrap_os_now_ns(void)
{
    clock_calls++;
    return stopped_clock ? stopped_clock : __real_os_now_ns();
}

static void (*while_waiting)(void); /* once: the lock was tried, and whoever wants it backs off */
static void (*while_looking)(void); /* once: it was tried, and will be again at once */
static unsigned back_offs;

static void act(void (**action)(void))
{
    void (*chosen)(void) = *action;
    *action = NULL;
    if (chosen)
        chosen();
}

void __real_os_back_off(unsigned looks);
void __wrap_os_back_off(unsigned looks)
{
    back_offs++;
    act(&while_waiting);
    __real_os_back_off(looks);
}

void __real_os_spin(void);
void __wrap_os_spin(void)
{
    act(&while_looking);
    __real_os_spin();
}

static pthread_t holder;
static int let_go[2];

/* The lock of two, until there is something to read. */
static void *hold(void *taken)
{
    char byte;
    CHECK(store_lock(&two));
    atomic_store((_Atomic bool *)taken, true);
    CHECK(read(let_go[0], &byte, 1) == 1);
    store_unlock(&two);
    return NULL;
}

static bool others_hold_the_lock(void)
{
    static _Atomic bool taken;
    atomic_store(&taken, false);
    if (pipe(let_go) < 0 || pthread_create(&holder, NULL, hold, (void *)&taken) != 0)
        return false;
    while (!atomic_load(&taken))
        os_sleep_us(100);
    return true;
}

static void they_let_go(void)
{
    CHECK(write(let_go[1], "", 1) == 1);
    pthread_join(holder, NULL);
    close(let_go[0]);
    close(let_go[1]);
}

/* Whoever wants the lock sleeps until it is free; if that takes too long he does without at once. */
static void a_lock_is_waited_for_once(void)
{
    REQUIRE(open_pair() && others_hold_the_lock());
    while_waiting = they_let_go;
    stopped_clock = __real_os_now_ns(); /* however slow the machine is */
    CHECK(store_lock(&one) && !while_waiting);
    stopped_clock = 0;
    store_unlock(&one);
    REQUIRE(others_hold_the_lock());
    clock_calls = 0;
    CHECK(!store_lock(&one) && clock_calls); /* it waits by the clock */
    clock_calls = 0;
    CHECK(!store_lock(&one) && !store_lock(&one) && !clock_calls);
    they_let_go();
    CHECK(store_lock(&one));
    store_unlock(&one);
    REQUIRE(others_hold_the_lock());
    clock_calls = 0;
    CHECK(!store_lock(&one) && clock_calls); /* there is patience again */
    they_let_go();
    store_detach(&one);
    close_all();
}

/* Whoever wants the lock looks some times before he gives his processor to those who want it too. */
static void a_short_hold_costs_nobody_the_processor(void)
{
    REQUIRE(open_pair() && others_hold_the_lock());
    back_offs = 0;
    while_looking = they_let_go;
    stopped_clock = __real_os_now_ns();
    CHECK(store_lock(&one) && !while_looking && !back_offs);
    stopped_clock = 0;
    store_unlock(&one);
    store_detach(&one);
    close_all();
}

/* To give back what nobody has taken is a mistake that checked builds end at, and others survive. */
static void a_lock_is_given_back_once(void)
{
    int status;
    REQUIRE(open_pair());
    CHECK(store_lock(&one));
    store_unlock(&one);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        store_unlock(&one);
        _exit(one.depth != 0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) ? WEXITSTATUS(status) == 0 : WTERMSIG(status) == SIGABRT);
    store_detach(&one);
    close_all();
}

/* What takes the kernel long is done without the lock, and what was announced stays so. */
static void nobody_waits_while_memory_is_asked_for(void)
{
    enum { MANY = 20000, PAGE_BYTES = 16 * PAGE_SIZE };
    REQUIRE(open_pair());
    uint64_t before = one.head->announced_size, found = 0;
    for (uint64_t i = 0; i < 2; i++) { /* what lies at the start of the events' memory */
        announcement_add(&one, 0, i, true);
        CHECK(store_lock(&one));
        event_add(&one, 0, i);
        store_unlock(&one);
    }
    most_at_once = 0;
    for (uint64_t i = 2; i < MANY; i++)
        CHECK(announcement_add(&one, 0, i * 2654435761u, true) == ANNOUNCED_NOWHERE);
    CHECK(one.head->announced_size >= 16 * before && most_at_once <= PAGE_BYTES);
    for (uint64_t i = 2; i < MANY; i++)
        found += announcement_is_elsewhere(&two, 0, i * 2654435761u);
    CHECK(found == MANY - 2);
    uint64_t start = one.announcements.offset + before * sizeof(uint64_t), at = start, end = start;
    next_data(file, &at, &end);
    CHECK(at >= start + before * sizeof(uint64_t)); /* the memory of the smaller tables is gone */
    CHECK(store_lock(&two) && store_check(&two) == 0);
    store_unlock(&two);
    most_at_once = 0;
    store_detach(&one);
    CHECK(most_at_once <= PAGE_BYTES);
    slots_reap(&two);
    close_all();
}

int main(void)
{
    RUN(a_lock_is_waited_for_once);
    RUN(a_short_hold_costs_nobody_the_processor);
    RUN(a_lock_is_given_back_once);
    RUN(nobody_waits_while_memory_is_asked_for);
    return finish();
}
