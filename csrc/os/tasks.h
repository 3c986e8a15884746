/*
 * What the other threads of this process do, as /proc/self/task tells.
 */
#ifndef KSMPY_OS_TASKS_H
#define KSMPY_OS_TASKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "os/entries.h"
#include "os/thread_data.h"

/* In order: the last is the worst.  What a thread does that runs, or is about to, nobody tells. */
enum os_activity { OS_ELSEWHERE, OS_RUNNING, OS_INVOLVED, OS_UNKNOWN };

/* What is asked about memory in [start, end). */
struct os_question {
    int tasks_fd;
    uintptr_t start, end;
    long ours; /* a thread that is not looked at, besides the one that asks; or 0 */
    /* What a thread does that waits in this call: "number argument0 argument1 ...". */
    enum os_activity (*judge)(const struct os_question *question, const char *call);
    /* Is a thread that runs elsewhere all the same?  Or NULL: that is not known. */
    bool (*believe)(const struct os_question *question, const char *thread);
    void *more; /* for the two above */
    struct os_thread_layout layout; /* known: a thread whose data lies there is involved */
    /* Some threads ran at every look: is the answer yes?  Or NULL: it is. */
    bool (*judge_running)(struct os_question *question);
    /* Asked where there is no descriptor to be had: is the answer yes by descriptor 0?  Or NULL. */
    bool (*judge_input)(void);
    bool by_state; /* where calls may not be looked at: a thread that sleeps is in none */

    long asker;
    int crowded; /* why nobody could tell, if it was for want of a descriptor; or 0 */
    bool by_runners; /* some threads ran at every look */
    bool apart; /* asked where a fault would kill: no memory of others may be read */
};

/*
 * An address as the kernel takes it.  Arm ignores the highest byte, in which a program may keep a
 * tag, and other processors some bits of it, where they are asked to.  No memory lies that high.
 */
static inline uintptr_t os_untagged(uintptr_t address)
{
    return address & (UINTPTR_MAX >> 8);
}

int os_tasks_open(void); /* a descriptor of /proc/self/task, which is known; or -errno */
/* As os_each_entry() of that; -EBADF: the program has closed it. */
int os_each_task(int tasks_fd, os_visit *visit, void *data);
/*
 * Reads the beginning of a file of a thread's in /proc as text; its length, or -errno.  By the
 * descriptor, which reaches it even when the program has changed its root and sees no /proc, or
 * without one (-1).
 */
int os_task_tell(int tasks_fd, const char *thread, const char *what, char *text, size_t size);

/*
 * Asks about all threads but the asking one and `ours`; apart (os/apart.h) where no descriptor is
 * free.  0: no; -EBUSY: yes, or nobody can tell; -EMFILE, -ENFILE: nobody can, for want of one.
 */
int os_ask_tasks(struct os_question *question);

bool os_task_lives(uint32_t thread); /* of this process */

/* Has the process memory that is locked? true also where nobody can tell. */
bool os_has_locked_memory(int tasks_fd);

#endif
