/* Whether a device may be writing into pages: of a thread that runs, and with no descriptor. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/pages.h"
#include "check.h"
#include "os/clock.h"
#include "os/direct_io.h"
#include "os/files.h"
#include "os/tasks.h"

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
        if ((os_direct_io(tasks, (uintptr_t)page & ~(PAGE_SIZE - 1), 1) != 0) == wanted)
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

static _Alignas(4096) uint8_t target[PAGE_SIZE];

static void *read_into(void *fd)
{
    CHECK(read(*(int *)fd, target, sizeof target) == 1);
    return NULL;
}

/* Every descriptor that the process may have, in a list that a 0 ends. */
static void take_all(int *taken)
{
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = 64;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    while ((*taken = dup(STDERR_FILENO)) > 0)
        taken++;
    *taken = 0;
}

static void look_at_a_reader(int tasks, int flags, bool wanted)
{
    pthread_t thread;
    int ends[2], taken[65], *each;
    bool seen = false;
    CHECK(pipe(ends) == 0 && fcntl(ends[0], F_SETFL, flags) == 0);
    CHECK(pthread_create(&thread, NULL, read_into, &ends[0]) == 0);
    take_all(taken);
    for (int tries = 0; tries < 1000 && !seen; tries++) {
        os_sleep_us(1000); /* until it waits */
        seen = (os_direct_io(tasks, (uintptr_t)target, 1) != 0) == wanted;
    }
    CHECK(seen);
    CHECK(open("/dev/null", O_RDONLY) < 0); /* still */
    for (each = taken; *each; each++)
        close(*each);
    CHECK(write(ends[1], "", 1) == 1);
    pthread_join(thread, NULL);
    close(ends[0]);
    close(ends[1]);
}

/* Whoever reads is seen then as ever, and whoever does not keeps nobody waiting. */
static void test_no_descriptor_is_free(void)
{
    int tasks = os_tasks_open();
    CHECK(tasks >= 0);
    look_at_a_reader(tasks, 0, false);
    look_at_a_reader(tasks, O_DIRECT, true);
    close(tasks);
}

/* The program may go on reading or writing where it is in its own file. */
static void test_another_file_stays_where_it_is(void)
{
    int tasks = os_tasks_open(), other = open("/var/tmp", O_RDONLY | O_DIRECTORY);
    char entry[512];
    CHECK(tasks >= 0 && other >= 0 && syscall(SYS_getdents64, other, entry, sizeof entry) > 0);
    off_t at = lseek(other, 0, SEEK_CUR);
    CHECK(dup2(other, tasks) == tasks);
    CHECK(os_each_task(tasks, NULL, NULL) == -EBADF);
    CHECK(lseek(other, 0, SEEK_CUR) == at && at > 0);
    close(tasks);
    close(other);
}

/* A file of the program's that has got the number meanwhile is not ours to close. */
static void test_what_is_read_briefly_is_closed_alone(void)
{
    int brief = os_open_briefly(AT_FDCWD, "/proc/self/stat"), other = open("/dev/null", O_RDONLY);
    CHECK(brief >= 0 && other >= 0 && dup2(other, brief) == brief);
    os_close_brief(brief);
    CHECK(close(brief) == 0);
    brief = os_open_briefly(AT_FDCWD, "/proc/self/stat");
    os_close_brief(brief);
    CHECK(fcntl(brief, F_GETFD) < 0);
    close(other);
}

int main(void)
{
    RUN(test_a_thread_that_runs_may_be_reading);
    RUN(test_no_descriptor_is_free);
    RUN(test_another_file_stays_where_it_is);
    RUN(test_what_is_read_briefly_is_closed_alone);
    return finish();
}
