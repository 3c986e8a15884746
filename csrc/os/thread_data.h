/*
 * Where the kernel writes to a thread's own data by itself, with no call of the thread's: its number,
 * when it ends, and on which processor it runs (restartable sequences, rseq(2)), whenever it is set
 * going.
 */
#ifndef KSMPY_OS_THREAD_DATA_H
#define KSMPY_OS_THREAD_DATA_H

#include <stdbool.h>
#include <stdint.h>

/* Where that is, in bytes behind the head of a thread's list of robust mutexes: alike in all. */
struct os_thread_layout {
    bool known;
    uintptr_t start, end;
};

/* As the calling thread has it; not known where that has no such list. */
struct os_thread_layout os_thread_layout(void);
/* Does a thread's data meet [start, end)?  false also where nobody can tell. */
bool os_thread_data_meets(const struct os_thread_layout *layout, long thread, uintptr_t start,
                          uintptr_t end);
/* The same for the calling thread, of whom it is always known. */
bool os_own_data_meets(uintptr_t start, uintptr_t end);

#endif
