/* Whether a device may be writing into pages: what is taken for granted of a thread that runs. */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "os.h"

static _Atomic bool stop;

static void *compute(void *nothing)
{
    while (!atomic_load(&stop))
        ;
    return nothing;
}

/* A busy machine takes it from its processor now and then, which shows as waiting for nothing. */
static bool asked(int tasks, bool wanted)
{
    static uint8_t page[PAGE_SIZE];
    for (int tries = 0; tries < 1000; tries++)
        if (os_direct_io(tasks, (uintptr_t)page & ~(PAGE_SIZE - 1), 1) == wanted)
            return true;
    return false;
}

static void test_a_thread_that_runs_may_be_reading(void)
{
    pthread_t thread;
    int tasks = os_tasks_open();
    CHECK(tasks >= 0);
    CHECK(pthread_create(&thread, NULL, compute, NULL) == 0);
    CHECK(asked(tasks, false)); /* nothing is open by which it could read past the page cache */

    char path[] = "/var/tmp/ksmpy-direct-XXXXXX";
    int plain = mkstemp(path), direct = open(path, O_RDONLY | O_DIRECT);
    unlink(path);
    if (direct >= 0) {
        CHECK(asked(tasks, true));
        close(direct);
        CHECK(asked(tasks, false));
    }
    close(plain);
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    close(tasks);
    if (direct < 0)
        SKIP("no direct I/O on this file system");
}

int main(void)
{
    RUN(test_a_thread_that_runs_may_be_reading);
    return finish();
}
