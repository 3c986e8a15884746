#include "os/given_back.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/pages.h"
#include "os/apart.h"
#include "os/tasks.h"

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

/* Does the thread of this text, "number argument0 ...", wait in a madvise() that gives back? */
static bool is_removal(const char *text, struct os_removal *removal)
{
    char *at;
    if (strtol(text, &at, 10) != SYS_madvise)
        return false;
    removal->start = os_untagged(strtoul(at, &at, 16));
    removal->end = removal->start + bytes_of((strtoul(at, &at, 16) + PAGE_SIZE - 1) >> PAGE_SHIFT);
    unsigned long advice = strtoul(at, &at, 16);
    return advice == MADV_DONTNEED || advice == MADV_FREE || advice == MADV_DONTNEED_LOCKED;
}

struct removers {
    int tasks_fd;
    long looker;
    struct os_removal *found;
    int n, max;
    int crowded; /* why some could not be looked at, for want of a descriptor; or 0 */
    bool running;
};

static bool add_remover(const char *name, void *data)
{
    struct removers *removers = data;
    char text[256];
    struct os_removal removal = {.thread = strtol(name, NULL, 10)};
    if (removal.thread == removers->looker || removal.thread == syscall(SYS_gettid))
        return false;
    int got = os_task_tell(removers->tasks_fd, name, "syscall", text, sizeof text);
    if (got <= 0) {
        removers->crowded = os_is_crowded(got) ? got : removers->crowded;
        return removers->crowded;
    }
    removers->running |= strncmp(text, "running", 7) == 0;
    if (is_removal(text, &removal) && removers->n++ < removers->max)
        removers->found[removers->n - 1] = removal;
    return false;
}

static int find_removers(void *data, bool apart)
{
    struct removers *removers = data;
    (void)apart;
    removers->n = removers->crowded = 0;
    os_each_task(removers->tasks_fd, add_remover, removers);
    return removers->crowded;
}

int os_removals(int tasks_fd, struct os_removal *removals, int max, bool *running)
{
    struct removers removers = {
        .tasks_fd = tasks_fd, .looker = syscall(SYS_gettid), .found = removals, .max = max};
    int error = os_ask(find_removers, &removers);
    *running = removers.running;
    return error ? error : removers.n;
}

bool os_may_remove(int tasks_fd, const struct os_removal *removal)
{
    char name[24], text[256];
    struct os_removal now;
    snprintf(name, sizeof name, "%ld", removal->thread);
    if (removal->thread == syscall(SYS_gettid))
        return false;
    int got =
        removal->thread ? os_task_tell(tasks_fd, name, "syscall", text, sizeof text) : -EACCES;
    if (got <= 0)
        return got != -ENOENT && got != -ESRCH;
    return strncmp(text, "running", 7) == 0 ||
           (is_removal(text, &now) && now.start == removal->start && now.end == removal->end);
}
