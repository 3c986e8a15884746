/* A thread forks while another one makes an engine, or closes one: at the same place on every run. */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "freeze/freezer.h"
#include "freeze/removal_thread.h"
#include "ksmpy.h"
#include "os/clock.h"
#include "os/probe.h"
#include "pages.h"

#define FILES 256
#define PATIENCE_MS 100 /* after which a fork that is still not over is taken to wait */

static bool ours[FILES]; /* open before */
static pthread_t thread;
static atomic_bool forked;
static int status;

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

/* In the child: how many descriptors it has of which nobody there knows. */
static int strange_files(void)
{
    int count = 0;
    for (int fd = 0; fd < FILES; fd++)
        count += is_open(fd) && !ours[fd];
    return count;
}

static void *fork_and_look(void *nothing)
{
    pid_t child = fork();
    if (child == 0)
        _exit(strange_files());
    atomic_store(&forked, true);
    if (child < 0 || waitpid(child, &status, 0) != child)
        status = -1;
    return nothing;
}

static enum place { NOWHERE, IN_PROBE, IN_FREEZER, IN_END } fork_at;

static void reach(enum place place)
{
    if (fork_at != place)
        return;
    fork_at = NOWHERE;
    REQUIRE(pthread_create(&thread, NULL, fork_and_look, NULL) == 0);
    for (unsigned ms = 0; ms < PATIENCE_MS && !atomic_load(&forked); ms++)
        os_sleep_us(1000);
}

void __real_os_probe(struct ksmpy_caps *caps);
void __wrap_os_probe(struct ksmpy_caps *caps)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC); /* as it has some open meanwhile */
    reach(IN_PROBE);
    close(fd);
    __real_os_probe(caps);
}

int __real_freezer_init(struct freezer *fz, int mode, bool tracked);
int __wrap_freezer_init(struct freezer *fz, int mode, bool tracked)
{
    int error = __real_freezer_init(fz, mode, tracked);
    reach(IN_FREEZER);
    return error;
}

void __real_removals_stop(struct freezer *fz);
void __wrap_removals_stop(struct freezer *fz)
{
    reach(IN_END);
    __real_removals_stop(fz);
}

static void begin(enum place place)
{
    for (int fd = 0; fd < FILES; fd++)
        ours[fd] = is_open(fd);
    status = -1;
    atomic_store(&forked, false);
    fork_at = place;
}

static void end(void)
{
    REQUIRE(fork_at == NOWHERE);
    pthread_join(thread, NULL);
    CHECK(status == 0);
}

/* ---- what a child inherits ---- */

static int way, tracking;

static void make_and_close(enum place place)
{
    begin(place);
    ksmpy_engine *engine = engine_of(way, tracking, 1);
    REQUIRE(engine);
    CHECK(ksmpy_engine_close(engine) == 0);
    end();
}

static void a_child_inherits_nothing_that_is_only_tried(void)
{
    struct ksmpy_caps caps;
    make_and_close(IN_PROBE);
    begin(IN_PROBE);
    ksmpy_probe(&caps);
    end();
}

static void a_child_inherits_no_engine_that_is_half_made(void)
{
    make_and_close(IN_FREEZER);
}

static void a_child_inherits_no_engine_that_is_half_closed(void)
{
    make_and_close(IN_END);
}

static void run_all(void)
{
    RUN(a_child_inherits_nothing_that_is_only_tried);
    RUN(a_child_inherits_no_engine_that_is_half_made);
    RUN(a_child_inherits_no_engine_that_is_half_closed);
}

int main(void)
{
    static const int ways[][2] = {{KSMPY_FREEZE_UFFD_WP, KSMPY_TRACKING_WP_ASYNC},
                                  {KSMPY_FREEZE_UFFD_MOVE, KSMPY_TRACKING_WP_ASYNC},
                                  {KSMPY_FREEZE_SIGNAL, KSMPY_TRACKING_CHECKSUM}};
    return finish_in(ways, sizeof ways / sizeof ways[0], &way, &tracking, run_all);
}
