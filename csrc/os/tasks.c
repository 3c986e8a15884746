/*
 * A thread that waits in a system call shows it, with its arguments, in /proc/self/task/TID/syscall.
 *
 * A thread on a processor shows only "running".  It may be about to wait, so it is looked at again
 * for a while.  One that runs all that time is computing, or in a system call all the same: it
 * polls, copies, or was preempted.
 *
 * A process that has changed its user may not look at its own system calls.  Whether a thread waits
 * for a disk it still may (TID/stat), which is an answer to some questions.
 */
#include "os/tasks.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "os/apart.h"
#include "os/clock.h"
#include "os/entries.h"
#include "os/files.h"
#include "os/thread_data.h"

/*
 * How often a thread that runs is looked at, and how many us apart: about 120 us in all, for which
 * pages may stay frozen.  Fewer looks would leave more pages alone because a thread was just
 * computing.
 */
#define LOOKS 6
#define BETWEEN_LOOKS_US 20
#define TASKS "/proc/self/task/"

int os_tasks_open(void)
{
    uint64_t inode, dev;
    int fd = os_keep_off_standard(open(TASKS, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (fd >= 0)
        os_know_file(fd, &inode, &dev);
    return fd;
}

/* To read a directory moves the position in the file: in one of the program's it is to stay. */
int os_each_task(int tasks_fd, os_visit *visit, void *data)
{
    return os_is_known(tasks_fd) ? os_each_entry(tasks_fd, visit, data) : -EBADF;
}

int os_task_tell(int tasks_fd, const char *thread, const char *what, char *text, size_t size)
{
    char path[48];
    snprintf(path, sizeof path, "%s%.16s/%s", tasks_fd < 0 ? TASKS : "", thread, what);
    int fd = os_open_briefly(tasks_fd, path);
    if (fd < 0)
        return -errno;
    ssize_t got = read(fd, text, size - 1);
    int error = got < 0 ? -errno : 0;
    os_close_brief(fd);
    text[got > 0 ? got : 0] = 0;
    return error ? error : (int)got;
}

/* text: "tid (name) state ...", proc_pid_stat(5). */
static char state_of(const char *text)
{
    const char *name_end = strrchr(text, ')');
    return name_end && name_end[1] ? name_end[2] : 0;
}

/*
 * The first thread stays in the list when it has ended before the others, and is in no call ("-1"),
 * as one that waits for a page.
 */
static bool is_dead(const struct os_question *question, const char *thread, const char *call)
{
    char text[256];
    return strncmp(call, "-1", 2) == 0 &&
           os_task_tell(question->tasks_fd, thread, "stat", text, sizeof text) > 0 &&
           strchr("ZX", state_of(text)) != NULL;
}

/* State D is an uninterruptible wait, as for a disk. */
static enum os_activity judge_state(const char *text)
{
    char state = state_of(text);
    return state == 'D' ? OS_INVOLVED : state == 'R' ? OS_RUNNING : OS_ELSEWHERE;
}

/* Threads that are not looked at are elsewhere. */
static enum os_activity look_at(struct os_question *question, const char *thread)
{
    char text[256];
    long number = strtol(thread, NULL, 10);
    if (number == question->asker || number == question->ours || number == syscall(SYS_gettid))
        return OS_ELSEWHERE;
    if (os_thread_data_meets(&question->layout, number, question->start, question->end))
        return OS_INVOLVED;
    int got = os_task_tell(question->tasks_fd, thread, "syscall", text, sizeof text);
    if (got >= 0 && is_dead(question, thread, text))
        return OS_ELSEWHERE;
    if (got >= 0)
        return strncmp(text, "running", 7) == 0 ? OS_RUNNING : question->judge(question, text);
    if ((got == -EACCES || got == -EPERM) && question->by_state) {
        got = os_task_tell(question->tasks_fd, thread, "stat", text, sizeof text);
        if (got > 0)
            return judge_state(text);
    }
    if (os_is_crowded(got))
        question->crowded = got;
    return got == -ENOENT || got == -ESRCH ? OS_ELSEWHERE : OS_UNKNOWN;
}

struct round {
    struct os_question *question;
    enum os_activity worst;
};

static bool look_at_thread(const char *name, void *data)
{
    struct round *round = data;
    struct os_question *question = round->question;
    enum os_activity activity = look_at(question, name);
    if (activity == OS_RUNNING && question->believe && question->believe(question, name))
        activity = OS_ELSEWHERE;
    round->worst = activity > round->worst ? activity : round->worst;
    return round->worst >= OS_INVOLVED;
}

/* The worst of what the threads do. */
static enum os_activity look(struct os_question *question)
{
    struct round round = {.question = question};
    int seen = os_each_task(question->tasks_fd, look_at_thread, &round);
    return seen < 0 ? OS_UNKNOWN : round.worst;
}

static bool is_busy(struct os_question *question)
{
    for (int i = 0; i < LOOKS; i++) {
        enum os_activity activity = look(question);
        if (activity != OS_RUNNING)
            return activity >= OS_INVOLVED;
        if (i == 0 && question->judge_running && !question->judge_running(question))
            return false;
        os_sleep_us(BETWEEN_LOOKS_US);
    }
    question->by_runners = true;
    return true;
}

static int answer(void *data, bool apart)
{
    struct os_question *question = data;
    question->apart = apart;
    question->crowded = 0;
    if (!is_busy(question))
        return 0;
    bool nobody_knows =
        question->crowded && (apart || !question->judge_input || !question->judge_input());
    return nobody_knows ? question->crowded : -EBUSY;
}

int os_ask_tasks(struct os_question *question)
{
    question->asker = syscall(SYS_gettid);
    return os_ask(answer, question);
}

bool os_task_lives(uint32_t thread)
{
    return syscall(SYS_tgkill, getpid(), thread, 0) == 0 || errno != ESRCH;
}

struct lock_question {
    int tasks_fd;
    long thread; /* any of this process */
    bool locked;
};

static int ask_for_locked(void *data, bool apart)
{
    struct lock_question *question = data;
    char text[4096], name[24];
    (void)apart;
    snprintf(name, sizeof name, "%ld", question->thread);
    int got = os_task_tell(question->tasks_fd, name, "status", text, sizeof text);
    const char *line = got > 0 ? strstr(text, "VmLck:") : NULL;
    question->locked = !line || strtoul(line + 6, NULL, 10) != 0;
    return got < 0 ? got : 0;
}

bool os_has_locked_memory(int tasks_fd)
{
    struct lock_question question = {.tasks_fd = tasks_fd, .thread = syscall(SYS_gettid)};
    os_ask(ask_for_locked, &question);
    return question.locked;
}
