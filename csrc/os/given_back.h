/*
 * Which threads are giving memory back: madvise(MADV_DONTNEED, MADV_FREE).
 */
#ifndef KSMPY_OS_GIVEN_BACK_H
#define KSMPY_OS_GIVEN_BACK_H

#include <stdbool.h>
#include <stdint.h>

/* A thread in madvise() that gives memory back. */
struct os_removal {
    uintptr_t start, end;
    long thread; /* 0: nobody knows which */
};
/*
 * Those that wait there, for the kernel or for us.  Returns how many there are, of which the first
 * max are told; or -errno: nobody can tell.  Others that are running may be there as well.
 */
int os_removals(int tasks_fd, struct os_removal *removals, int max, bool *running);
/* May that thread still be in it? One that runs does not say where. */
bool os_may_remove(int tasks_fd, const struct os_removal *removal);

#endif
