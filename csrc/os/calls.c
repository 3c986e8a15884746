#include "os/calls.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/pages.h"
#include "os/clock.h"
#include "os/guard.h"
#include "os/tasks.h"
#include "os/thread_data.h"

/* The same number on all machines; the headers of old systems do not have them. */
#define IO_URING_ENTER 426
#define CLONE3 435
#define EPOLL_PWAIT2 441
#define ARGUMENTS 6
/* Buffers of a list that are looked at: a longer list counts as reaching anywhere. */
#define LISTED 64
/*
 * A thread that runs is believed to compute once it has, since the first look at it, taken so many
 * ticks of processor time (1/100 s each) for itself, and none in the kernel.  One that spends half
 * of its time in the kernel passes once in a thousand times.
 */
#define TICKS 10
#define BELIEVED_NS ((uint64_t)2000000000) /* after which it has to show that anew */
/*
 * What functions on x86-64 may use below the stack pointer, and signals leave alone; and what the
 * frame of a signal takes, where the kernel does not tell.
 */
#define RED_ZONE 128
#define FRAME_BYTES 8192

/* The length may be more than there is memory: the kernel takes less then. */
static bool reaches(const struct os_question *question, uintptr_t buffer, size_t length)
{
    buffer = os_untagged(buffer);
    return buffer < question->end &&
           (buffer >= question->start || length > question->start - buffer);
}

/* The list is not frozen yet, and stays while the thread waits; true also if it cannot be read. */
static bool list_reaches(const struct os_question *question, uintptr_t list, uint64_t n)
{
    struct iovec buffers[LISTED];
    if (question->apart || n > LISTED ||
        !guard_copy(buffers, (const void *)list, n * sizeof *buffers))
        return true;
    for (uint64_t i = 0; i < n; i++)
        if (reaches(question, (uintptr_t)buffers[i].iov_base, buffers[i].iov_len))
            return true;
    return false;
}

static bool message_reaches(const struct os_question *question, uintptr_t address)
{
    struct msghdr message;
    return question->apart || !guard_copy(&message, (const void *)address, sizeof message) ||
           reaches(question, address, sizeof message) ||
           reaches(question, (uintptr_t)message.msg_name, message.msg_namelen) ||
           reaches(question, (uintptr_t)message.msg_control, message.msg_controllen) ||
           list_reaches(question, (uintptr_t)message.msg_iov, message.msg_iovlen);
}

/* Calls that have no buffers have structures: what begins on the page before may lie on two pages. */
static bool structures_reach(const struct os_question *question, const uintptr_t *arguments)
{
    for (int i = 0; i < ARGUMENTS; i++)
        if (reaches(question, arguments[i], PAGE_SIZE))
            return true;
    return false;
}

static bool buffers_reach(const struct os_question *question, long number,
                          const uintptr_t *arguments)
{
    switch (number) {
    case SYS_read:
    case SYS_write:
    case SYS_pread64:
    case SYS_pwrite64:
    case SYS_recvfrom:
    case SYS_sendto:
        return reaches(question, arguments[1], arguments[2]);
    case SYS_readv:
    case SYS_writev:
    case SYS_preadv:
    case SYS_pwritev:
    case SYS_preadv2:
    case SYS_pwritev2:
    case SYS_vmsplice:
        return list_reaches(question, arguments[1], arguments[2]);
    case SYS_recvmsg:
    case SYS_sendmsg:
        return message_reaches(question, arguments[1]);
    case SYS_ppoll:
        return reaches(question, arguments[0], arguments[1] * sizeof(struct pollfd));
    case SYS_epoll_pwait:
    case EPOLL_PWAIT2:
        return reaches(question, arguments[1], arguments[2] * sizeof(struct epoll_event));
    case SYS_getrandom:
        return reaches(question, arguments[0], arguments[1]);
    case SYS_getdents64:
    case SYS_mq_timedreceive:
        return reaches(question, arguments[1], arguments[2]);
    case SYS_msgrcv:
        return reaches(question, arguments[1], sizeof(long) + arguments[2]);
    case SYS_futex:
        return false;
    /* Buffers that are not looked for, or of another thread, as a child that shares the memory. */
    case SYS_recvmmsg:
    case SYS_sendmmsg:
    case SYS_io_getevents:
    case IO_URING_ENTER:
    case SYS_process_vm_readv:
    case SYS_process_vm_writev:
    case SYS_clone:
    case CLONE3:
        return true;
#ifdef SYS_poll /* not on arm64 */
    case SYS_poll:
        return reaches(question, arguments[0], arguments[1] * sizeof(struct pollfd));
    case SYS_epoll_wait:
        return reaches(question, arguments[1], arguments[2] * sizeof(struct epoll_event));
    case SYS_vfork:
        return true;
#endif
    default:
        return structures_reach(question, arguments);
    }
}

/*
 * A signal that wakes the thread has its frame written below the stack pointer, by the kernel, which
 * ends the process where it cannot.  A stack may lie in memory of malloc's (makecontext(),
 * pthread_attr_setstack()).
 */
static bool signal_reaches(const struct os_question *question, uintptr_t stack)
{
    uintptr_t told = getauxval(AT_MINSIGSTKSZ), below = RED_ZONE + (told ? told : FRAME_BYTES);
    return stack >= below && reaches(question, stack - below, below);
}

/*
 * call: "number argument0 ... stack-pointer program-counter", where a number of -1 says that the
 * thread waits for a page; it may make any call after that.
 */
static enum os_activity judge(const struct os_question *question, const char *call)
{
    char *at;
    uintptr_t arguments[ARGUMENTS];
    bool involved = false;
    long number = strtol(call, &at, 10);
    if (number < 0)
        return OS_RUNNING;
    for (int i = 0; i < ARGUMENTS; i++) {
        arguments[i] = strtoul(at, &at, 16);
        involved |= reaches(question, arguments[i], 1);
    }
    involved |= signal_reaches(question, strtoul(at, NULL, 16));
    return involved || buffers_reach(question, number, arguments) ? OS_INVOLVED : OS_ELSEWHERE;
}

/* Reads the ticks that a thread has taken so far; proc_pid_stat(5), fields 14 and 15. */
static bool read_ticks(int tasks_fd, const char *thread, uint64_t *user, uint64_t *system)
{
    char text[512];
    const char *at =
        os_task_tell(tasks_fd, thread, "stat", text, sizeof text) > 0 ? strrchr(text, ')') : NULL;
    return at &&
           sscanf(at, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", user, system) == 2;
}

static bool computes(const struct os_question *question, const char *name)
{
    struct os_runners *runners = question->more;
    struct os_runner now = {.thread = strtol(name, NULL, 10), .since = os_now_ns()};
    struct os_runner *before = &runners->known[now.thread % OS_RUNNERS];
    if (!read_ticks(question->tasks_fd, name, &now.user, &now.system))
        return false;
    uint64_t elapsed = now.since - before->since, ticks = now.user - before->user;
    if (before->thread != now.thread || before->system != now.system || elapsed > BELIEVED_NS) {
        *before = now;
        return false;
    }
    return ticks >= TICKS;
}

int os_calls(struct os_runners *runners, int tasks_fd, long ours, uintptr_t address, uint64_t n)
{
    struct os_question question = {
        .tasks_fd = tasks_fd,
        .start = address,
        .end = address + bytes_of(n),
        .ours = ours,
        .judge = judge,
        .believe = computes,
        .more = runners,
        .layout = os_thread_layout(),
    };
    int busy = os_ask_tasks(&question);
    return busy == -EBUSY && question.by_runners ? -EAGAIN : busy;
}

struct place {
    struct os_thread_layout layout;
    uintptr_t start, end;
};

static bool has_data_there(const char *thread, void *data)
{
    const struct place *place = data;
    return os_thread_data_meets(&place->layout, strtol(thread, NULL, 10), place->start, place->end);
}

bool os_is_thread_data(int tasks_fd, uintptr_t address, uint64_t n)
{
    struct place place = {os_thread_layout(), address, address + bytes_of(n)};
    return os_each_task(tasks_fd, has_data_there, &place) > 0;
}
