/* Which system calls keep memory from being frozen; and the lock of an interpreter, held meanwhile. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/pages.h"
#include "check.h"
#include "freeze/bystanders.h"
#include "os/calls.h"
#include "os/clock.h"
#include "os/guard.h"
#include "os/tasks.h"
#include "os/thread_data.h"

static _Alignas(PAGE_SIZE) uint8_t memory[4 * PAGE_SIZE]; /* read into: the second page */
static struct iovec list[2] = {{memory + PAGE_SIZE, 1}, {memory + PAGE_SIZE + 10, 10}};
static struct msghdr message = {.msg_iov = list, .msg_iovlen = 2};
static int ends[2], queue, tasks;
static struct os_runners runners;
static const _Atomic int nobody;

static void *plain(void *nothing)
{
    CHECK(read(ends[0], memory + PAGE_SIZE, 10) == 1);
    return nothing;
}

static void *by_a_tagged_address(void *nothing)
{
    uintptr_t address = (uintptr_t)memory + PAGE_SIZE;
#ifdef __aarch64__
    if (prctl(PR_SET_TAGGED_ADDR_CTRL, PR_TAGGED_ADDR_ENABLE, 0, 0, 0) == 0)
        address |= (uintptr_t)0x2a << 56;
#endif
    CHECK(read(ends[0], (uint8_t *)address, 10) == 1);
    return nothing;
}

static void *without_a_limit(void *nothing)
{
    volatile size_t length = SIZE_MAX;
    CHECK(recv(ends[0], memory + PAGE_SIZE - 10, length, 0) == 1);
    return nothing;
}

static void *scattered(void *nothing)
{
    CHECK(readv(ends[0], list, 2) == 1);
    return nothing;
}

static void *by_message(void *nothing)
{
    CHECK(recvmsg(ends[0], &message, 0) == 1);
    return nothing;
}

static void *with_control(void *nothing)
{
    uint8_t byte;
    struct iovec elsewhere = {&byte, 1};
    struct msghdr with = {.msg_iov = &elsewhere,
                          .msg_iovlen = 1,
                          .msg_control = memory + PAGE_SIZE,
                          .msg_controllen = 64};
    CHECK(recvmsg(ends[0], &with, 0) == 1);
    return nothing;
}

static void *into_an_array(void *nothing)
{
    uint8_t byte;
    struct pollfd *polled = (struct pollfd *)(void *)(memory + PAGE_SIZE) - 1;
    polled[0] = polled[1] = (struct pollfd){.fd = ends[0], .events = POLLIN};
    CHECK(poll(polled, 2, -1) == 2 && read(ends[0], &byte, 1) == 1);
    return nothing;
}

static void *from_a_queue(void *nothing)
{
    struct msgbuf *across = (struct msgbuf *)(void *)(memory + PAGE_SIZE - sizeof(long));
    CHECK(msgrcv(queue, across, 100, 0, 0) == 1);
    return nothing;
}

static void *from_a_pipe(void *nothing)
{
    struct iovec into = {memory + PAGE_SIZE - 10, 20};
    CHECK(vmsplice(ends[0], &into, 1, 0) == 1);
    return nothing;
}

static sigset_t signals; /* those that are waited for */

/* In all threads that are made from now on, too. */
static void block_signal(void)
{
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
}

static void *into_a_structure(void *nothing)
{
    siginfo_t *across = (siginfo_t *)(void *)(memory + PAGE_SIZE - 16);
    CHECK(sigwaitinfo(&signals, across) == SIGUSR1);
    return nothing;
}

#define STACK 512 /* pages: the thread sanitizer takes 225 of them for itself */

static _Alignas(PAGE_SIZE) uint8_t stack[STACK * PAGE_SIZE];
static _Atomic uintptr_t stack_page; /* in which the stack pointer of the thread lies */

/* It waits with its stack pointer some 300 bytes behind a page's start. */
static void *on_a_stack(void *nothing)
{
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);
    uint8_t *below = __builtin_alloca(here % PAGE_SIZE + PAGE_SIZE - 512);
    static uint8_t byte;
    below[0] = 0;
    __asm__ volatile("" : : "r"(below) : "memory");
    atomic_store(&stack_page, (uintptr_t)below & ~(uintptr_t)(PAGE_SIZE - 1));
    CHECK(read(ends[0], &byte, 1) == 1);
    return nothing;
}

static void *from_there(void *nothing)
{
    uint8_t byte[2];
    CHECK(read(ends[0], byte, sizeof byte) == 1);
    return nothing;
}

static int asked_about(uintptr_t page)
{
    return os_calls(&runners, tasks, 0, page, 1);
}

static int asked(int page)
{
    return asked_about((uintptr_t)memory + bytes_of((uint64_t)page));
}

static bool comes_to_about(uintptr_t page, int answer)
{
    for (int tries = 0; tries < 2000; tries++) {
        if (asked_about(page) == answer)
            return true;
        os_sleep_us(1000);
    }
    return false;
}

/*
 * Until it waits, the thread runs, and may be about to do anything; and so it may when it was joined,
 * until it is gone.
 */
static bool comes_to(int page, int answer)
{
    return comes_to_about((uintptr_t)memory + bytes_of((uint64_t)page), answer);
}

typedef void wake(pthread_t thread);

static void look_at_one(void *(*call)(void *), bool touches, wake *wake)
{
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, call, NULL) == 0);
    CHECK(comes_to(2, 0)); /* another page than it reads into */
    CHECK(comes_to(3, 0));
    CHECK((asked(1) == -EBUSY) == touches);
    wake(thread);
    pthread_join(thread, NULL);
    CHECK(comes_to(1, 0));
}

static void send_a_byte(pthread_t thread)
{
    (void)thread;
    CHECK(write(ends[1], "", 1) == 1);
}

static void look_at(void *(*call)(void *), bool touches)
{
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    look_at_one(call, touches, send_a_byte);
    close(ends[0]);
    close(ends[1]);
}

static void send_a_message(pthread_t thread)
{
    struct msgbuf one = {.mtype = 1};
    (void)thread;
    CHECK(msgsnd(queue, &one, 1, 0) == 0);
}

static void a_call_is_known_by_its_buffers(void)
{
    look_at(plain, true);
    look_at(scattered, true);
    look_at(by_message, true);
    look_at(with_control, true);
    look_at(into_an_array, true);
    look_at(by_a_tagged_address, true);
    look_at(from_there, false);
}

static void a_call_may_ask_for_more_than_there_is(void)
{
    pthread_t thread;
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    REQUIRE(pthread_create(&thread, NULL, without_a_limit, NULL) == 0);
    CHECK(comes_to(3, -EBUSY));
    send_a_byte(thread);
    pthread_join(thread, NULL);
    close(ends[0]);
    close(ends[1]);
}

static void a_queue_and_a_pipe_write_to_memory_too(void)
{
    queue = msgget(IPC_PRIVATE, 0600);
    REQUIRE(queue >= 0 && pipe(ends) == 0);
    look_at_one(from_a_queue, true, send_a_message);
    look_at_one(from_a_pipe, true, send_a_byte);
    msgctl(queue, IPC_RMID, NULL);
    close(ends[0]);
    close(ends[1]);
}

static void send_a_signal(pthread_t thread)
{
    CHECK(pthread_kill(thread, SIGUSR1) == 0);
}

static void a_structure_may_lie_on_two_pages(void)
{
    look_at_one(into_a_structure, true, send_a_signal);
}

/* A thread that waits there; 0: it could not be made. */
static pthread_t begin_on_a_stack(void)
{
    pthread_t thread = 0;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0 ||
        pthread_attr_setstack(&attributes, stack, sizeof stack) != 0 ||
        socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0 ||
        pthread_create(&thread, &attributes, on_a_stack, NULL) != 0)
        return 0;
    pthread_attr_destroy(&attributes);
    CHECK(comes_to(1, 0)); /* it waits, and for nothing that is in its way */
    return thread;
}

static void end_on_a_stack(pthread_t thread)
{
    send_a_byte(thread);
    pthread_join(thread, NULL);
    close(ends[0]);
    close(ends[1]);
}

static void a_signal_that_comes_has_its_frame_on_the_stack(void)
{
    pthread_t thread = begin_on_a_stack();
    REQUIRE(thread);
    CHECK(asked_about(stack_page - PAGE_SIZE) == -EBUSY);
    CHECK(asked_about(stack_page - bytes_of(6)) == 0);
    CHECK(asked_about((uintptr_t)stack) == 0);
    end_on_a_stack(thread);
    CHECK(comes_to_about(stack_page - PAGE_SIZE, 0));
}

#ifdef __GLIBC__
/* glibc has a thread's data above its stack, where nothing else of a thread that waits is in the way. */
static void a_thread_s_own_data_is_written_to_by_the_kernel(void)
{
    pthread_t thread = begin_on_a_stack();
    REQUIRE(thread);
    struct os_thread_layout layout = os_thread_layout();
    uintptr_t data = (uintptr_t)thread / PAGE_SIZE * PAGE_SIZE;
    CHECK(layout.known && layout.end - layout.start >= 2304);
    CHECK(data > stack_page && asked_about(data) == -EBUSY);
    CHECK(os_is_thread_data(tasks, data, 1) && !os_is_thread_data(tasks, stack_page, 1));
    end_on_a_stack(thread);
    CHECK(comes_to_about(data, 0) && !os_is_thread_data(tasks, data, 1));
}
#endif

static _Atomic bool stop;

static void *compute(void *nothing)
{
    while (!atomic_load(&stop))
        ;
    return nothing;
}

static void *call_all_the_time(void *nothing)
{
    while (!atomic_load(&stop))
        if (pread(tasks, memory, 1, 0) > 0) /* of a directory: EISDIR */
            break;
    return nothing;
}

static void who_runs_is_believed_once_it_was_seen_to_compute(void)
{
    pthread_t thread;
    atomic_store(&stop, false);
    REQUIRE(pthread_create(&thread, NULL, compute, NULL) == 0);
    uint64_t begin = os_now_ms();
    CHECK(comes_to(1, 0));
    CHECK(os_now_ms() - begin >= 90); /* ten ticks, the first of which may have been under way */
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
}

static void who_makes_calls_all_the_time_is_not_believed(void)
{
    pthread_t thread;
    atomic_store(&stop, false);
    REQUIRE(pthread_create(&thread, NULL, call_all_the_time, NULL) == 0);
    uint64_t believed = 0, looks = 0;
    for (uint64_t end = os_now_ms() + 700; os_now_ms() < end; looks++)
        believed += asked(1) == 0;
    CHECK(believed * 5 < looks); /* a busy machine takes it from its processor now and then */
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
}

/* ---- an interpreter's lock ---- */

static pthread_mutex_t interpreter = PTHREAD_MUTEX_INITIALIZER;

static int take(void)
{
    pthread_mutex_lock(&interpreter);
    return 7;
}

static void give_back(int state)
{
    CHECK(state == 7);
    pthread_mutex_unlock(&interpreter);
}

static bool hold(struct bystanders *bystanders)
{
    return bystanders_hold(bystanders, tasks, (uintptr_t)memory, 1);
}

/* On a busy machine the lock's thread may have to wait for a processor for longer than it is waited for. */
static bool holds_in_the_end(struct bystanders *bystanders)
{
    for (int tries = 0; tries < 50; tries++) {
        bystanders_be_patient(bystanders, &nobody);
        if (hold(bystanders))
            return true;
        os_sleep_us(60000); /* it is not asked for again at once */
    }
    return false;
}

static void the_interpreter_stands_still_while_memory_is_held(void)
{
    struct bystanders some, none;
    bystanders_know_interpreter(take, give_back);
    bystanders_open(&some, true);
    bystanders_open(&none, false);
    CHECK(hold(&none) && pthread_mutex_trylock(&interpreter) == 0); /* calls wait there */
    CHECK(!hold(&some)); /* somebody else has the lock, and keeps it */
    pthread_mutex_unlock(&interpreter);
    CHECK(holds_in_the_end(&some) && pthread_mutex_trylock(&interpreter) != 0);
    bystanders_let_go(&some);
    pthread_mutex_lock(&interpreter); /* it comes back */
    pthread_mutex_unlock(&interpreter);
    bystanders_close(&none);
    bystanders_close(&some);
}

static int take_nothing(void)
{
    return -1;
}

static void an_interpreter_without_memory_is_left_alone(void)
{
    struct bystanders some;
    bystanders_know_interpreter(take_nothing, give_back);
    bystanders_open(&some, true);
    CHECK(!hold(&some));
    bystanders_hurry();
    bystanders_settle();
    bystanders_need_not_hurry();
    bystanders_know_interpreter(take, give_back);
    CHECK(holds_in_the_end(&some));
    bystanders_let_go(&some);
    bystanders_close(&some);
}

static void *hold_later(void *bystanders)
{
    CHECK(!hold(bystanders));
    return NULL;
}

/* Is the thread that waits for the interpreter's lock told at once that somebody forks? */
static bool hurries(struct bystanders *bystanders)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, hold_later, bystanders) != 0)
        return false;
    os_sleep_us(20000); /* it waits for the lock by now, mostly */
    uint64_t begin = os_now_ms();
    bystanders_hurry();
    pthread_join(thread, NULL);
    bystanders_need_not_hurry();
    return os_now_ms() - begin < 100; /* of the 200 ms that it would wait */
}

static void a_fork_is_not_kept_waiting(void)
{
    struct bystanders some;
    bystanders_know_interpreter(take, give_back);
    bystanders_open(&some, true);
    pthread_mutex_lock(&interpreter); /* as who forks has it */
    bool hurried = false;
    for (int tries = 0; tries < 50 && !hurried; tries++)
        hurried = hurries(&some);
    CHECK(hurried);
    pthread_mutex_unlock(&interpreter);
    CHECK(holds_in_the_end(&some));
    bystanders_let_go(&some);
    bystanders_close(&some);
}

static void give_back_late(int state)
{
    os_sleep_us(50000);
    give_back(state);
}

static void a_fork_takes_no_lock_along(void)
{
    struct bystanders some;
    bystanders_know_interpreter(take, give_back_late);
    bystanders_open(&some, true);
    CHECK(holds_in_the_end(&some));
    bystanders_let_go(&some); /* the thread has the lock still, for 50 ms */
    bystanders_hurry();
    bystanders_settle();
    CHECK(pthread_mutex_trylock(&interpreter) == 0);
    pthread_mutex_unlock(&interpreter);
    bystanders_need_not_hurry();
    bystanders_close(&some);
}

static void nothing_is_held_once_the_interpreter_has_ended(void)
{
    struct bystanders some;
    bystanders_know_interpreter(take, give_back);
    bystanders_open(&some, true);
    CHECK(holds_in_the_end(&some));
    bystanders_let_go(&some);
    bystanders_interpreter_ends();
    pthread_mutex_lock(&interpreter); /* and nobody has the lock, or will */
    CHECK(!hold(&some));
    bystanders_hold_if_can(&some, tasks, (uintptr_t)memory, 1);
    bystanders_let_go(&some);
    pthread_mutex_unlock(&interpreter);
    bystanders_close(&some);
}

int main(void)
{
    sigset_t mask;
    guard_open(&mask);
    block_signal();
    tasks = os_tasks_open();
    RUN(a_call_is_known_by_its_buffers);
    RUN(a_call_may_ask_for_more_than_there_is);
    RUN(a_queue_and_a_pipe_write_to_memory_too);
    RUN(a_structure_may_lie_on_two_pages);
    RUN(a_signal_that_comes_has_its_frame_on_the_stack);
#ifdef __GLIBC__
    RUN(a_thread_s_own_data_is_written_to_by_the_kernel);
#endif
    RUN(who_runs_is_believed_once_it_was_seen_to_compute);
    RUN(who_makes_calls_all_the_time_is_not_believed);
    RUN(the_interpreter_stands_still_while_memory_is_held);
    RUN(an_interpreter_without_memory_is_left_alone);
    RUN(a_fork_is_not_kept_waiting);
    RUN(a_fork_takes_no_lock_along);
    RUN(nothing_is_held_once_the_interpreter_has_ended);
    guard_close(&mask);
    close(tasks);
    return finish();
}
