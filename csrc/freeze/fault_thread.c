/*
 * The fault thread has one small duty: a page that is missing although nobody
 * froze it (never touched, or given back with MADV_DONTNEED) gets the zero
 * page.  It may do that only while nothing is frozen, or it would put zeros
 * into a frozen range, and the thread that has frozen it may be waiting for
 * a fault of its own: so it tries the freezer's lock and never waits for it.
 * When it cannot take the lock it wakes the faulting thread, which faults
 * again: a spurious wake-up is harmless.
 *
 * The engine asks for no events of mremap and munmap.  A thread inside such a
 * system call would wait until its event has been read, and could not be
 * stopped meanwhile.  A tracer that has stopped the fault thread, and then
 * waits for the thread in mremap to stop, would wait for ever.
 */
#include "freeze/fault_thread.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>

#include "freeze/descriptors.h"
#include "freeze/helper.h"
#include "freeze/ops.h"
#include "os/clock.h"
#include "os/uffd.h"

/* How many messages are read before the first is answered: 2 KiB of this thread's stack. */
#define FAULTS 256

/*
 * Answers a fault that was read when thaws were counted.  If there was a thaw
 * since, the page may belong to an overlay that nobody has touched yet: no
 * page-table entry says so, and UFFDIO_ZEROPAGE would put zeros over the frame.
 * So such a fault is not answered.  The thaw has woken its thread, which faults
 * again if the page is still missing.
 */
static void fill_hole(struct freezer *fz, uintptr_t address, uint32_t thaws)
{
    if (pthread_mutex_trylock(&fz->lock) == 0) {
        /* EEXIST may mean a marker that write tracking left; UFFDIO_COPY replaces a marker. */
        if (atomic_load(&fz->thaws) == thaws && os_uffd_zero(fz->uffd, address, 1) == -EEXIST)
            os_uffd_copy(fz->uffd, address, fz->zeros, 1);
        pthread_mutex_unlock(&fz->lock);
        os_uffd_wake(fz->uffd, address, 1);
    } else { /* the page may be frozen: its thread faults again, and then waits for thaw() */
        os_sleep_us(20); /* the thread would fault again at once: this bounds how often it does */
        os_uffd_wake(fz->uffd, address, 1);
    }
}

/*
 * A thread that is woken too early faults again at once, and its new message is read before older
 * ones of others.  So all messages are read before anyone is woken: that way each thread gets its
 * turn.
 */
static void read_all(struct freezer *fz, uintptr_t *faults, int *count)
{
    int event = OS_UFFD_OTHER;
    uintptr_t end;
    *count = 0;
    while (*count < FAULTS && event != OS_UFFD_NOTHING) {
        event = os_uffd_read(fz->uffd, &faults[*count], &end);
        *count += event == OS_UFFD_FAULT;
    }
}

static void *fault_thread(void *argument)
{
    struct freezer *fz = argument;
    struct pollfd wait[2] = {{.fd = fz->uffd, .events = POLLIN},
                             {.fd = fz->stop_fd, .events = POLLIN}};
    uintptr_t faults[FAULTS];
    int count;
    for (;;) {
        if (poll(wait, 2, -1) < 0)
            continue;
        if (wait[1].revents || !freezer_has(fz, fz->uffd))
            return NULL;
        uint32_t thaws = atomic_load(&fz->thaws); /* before the messages: see fill_hole() */
        read_all(fz, faults, &count);
        for (int i = 0; i < count; i++)
            fill_hole(fz, faults[i], thaws);
    }
}

int fault_thread_start(struct freezer *fz)
{
    return helper_start(&fz->helper, fault_thread, fz);
}

void fault_thread_stop(struct freezer *fz)
{
    helper_end(&fz->helper, fz->stop_fd, freezer_has(fz, fz->stop_fd));
}
