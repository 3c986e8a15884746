/*
 * The C library keeps a structure for each thread, in the memory of its stack.  Where another thread
 * has its own only the kernel tells, by the head of the list of its robust mutexes, which is part of
 * it.
 */
#include "os/thread_data.h"

#include <pthread.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/pages.h"

/* Bytes of glibc's struct pthread, which begins at pthread_self(), on x86-64. */
#define STRUCTURE ((uintptr_t)2304)
#define RSEQ_BYTES ((uintptr_t)32) /* at least: of the first version */

/* glibc 2.35 and newer: from the thread pointer; the size is 0 where glibc has registered none. */
extern const ptrdiff_t __rseq_offset;
extern const unsigned __rseq_size;
#pragma weak __rseq_offset
#pragma weak __rseq_size

static uintptr_t thread_pointer(void)
{
#if defined(__x86_64__)
    return (uintptr_t)pthread_self();
#else
    return (uintptr_t)__builtin_thread_pointer();
#endif
}

static void find_own(uintptr_t *start, uintptr_t *end)
{
    *start = (uintptr_t)pthread_self();
    *end = *start + STRUCTURE;
    if (!&__rseq_offset || !&__rseq_size || !__rseq_size)
        return;
    uintptr_t rseq = thread_pointer() + (uintptr_t)__rseq_offset;
    uintptr_t rseq_end = rseq + (__rseq_size > RSEQ_BYTES ? __rseq_size : RSEQ_BYTES);
    *start = rseq < *start ? rseq : *start;
    *end = rseq_end > *end ? rseq_end : *end;
}

/* 0: it has none, or is no thread any more.  thread: 0 is the calling one. */
static uintptr_t robust_list(long thread)
{
    void *head = NULL;
    size_t size;
    return syscall(SYS_get_robust_list, thread, &head, &size) == 0 ? (uintptr_t)head : 0;
}

struct os_thread_layout os_thread_layout(void)
{
    uintptr_t start, end, head = robust_list(0);
    find_own(&start, &end);
    return (struct os_thread_layout){head != 0, start - head, end - head};
}

bool os_thread_data_meets(const struct os_thread_layout *layout, long thread, uintptr_t start,
                          uintptr_t end)
{
    uintptr_t head = layout->known ? robust_list(thread) : 0;
    return head && meet(start, end, head + layout->start, head + layout->end);
}

bool os_own_data_meets(uintptr_t start, uintptr_t end)
{
    uintptr_t data, data_end;
    find_own(&data, &data_end);
    return meet(start, end, data, data_end);
}
