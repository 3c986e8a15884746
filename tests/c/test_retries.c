/*
 * System calls of libraries that meet a freeze, on every run: what is frozen is thawed when somebody
 * waits for that, or touches it.  What the kernel writes there until then fails.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/pages.h"
#include "check.h"
#include "freeze/freezes.h"
#include "freeze/moving.h"
#include "freeze/retries.h"
#include "os/clock.h"
#include "os/files.h"
#include "os/fortified.h"
#include "os/handlers.h"
#include "os/imports.h"

#define MS ((uint64_t)1000000)

static char *memory, *frozen; /* three pages; the second of them */
static volatile sig_atomic_t is_frozen;
static unsigned waits; /* looks whether all is thawed */
static void (*when_waited_for)(void);
static uint64_t now; /* ns; 0: the clock's */

static void freeze(void)
{
    freezes_begin();
    mprotect(frozen, PAGE_SIZE, PROT_READ);
    is_frozen = 1;
}

static void thaw(void)
{
    if (!is_frozen)
        return;
    is_frozen = 0;
    mprotect(frozen, PAGE_SIZE, PROT_READ | PROT_WRITE);
    freezes_end();
}

static void thaw_for_writer(int signal)
{
    if (!is_frozen)
        raise(signal);
    thaw();
}

static void map_memory(void)
{
    struct sigaction action = {.sa_handler = thaw_for_writer, .sa_flags = SA_NODEFER};
    memory = mmap(NULL, 3 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    frozen = memory + PAGE_SIZE;
    sigaction(SIGSEGV, &action, NULL);
}

static void start(void)
{
    thaw();
    memset(memory, 0, 3 * PAGE_SIZE);
    waits = 0;
    when_waited_for = thaw;
    now = 0;
}

void __wrap_os_sleep_us(unsigned us)
{
    (void)us;
    waits++;
    when_waited_for();
}

uint64_t __real_os_now_ns(void);
uint64_t __wrap_os_now_ns(void)
{
    return now ? now : __real_os_now_ns();
}

/* ---- what is called instead ---- */

static const struct os_import *imports;
static size_t n_imports;

void __wrap_os_imports_lead(const struct os_import *list, size_t n)
{
    imports = list;
    n_imports = n;
}

static uintptr_t led(const char *name)
{
    for (size_t i = 0; i < n_imports; i++)
        if (strcmp(imports[i].name, name) == 0)
            return imports[i].ours;
    printf("nothing is called instead of %s\n", name);
    exit(1);
}

/* The function that libraries call when they call that of the name. */
#define LED(name) ((__typeof__(&(name)))led(#name))

/* ---- what there is to read from ---- */

static int here, there; /* two ends */

static void close_ends(void)
{
    close(here);
    close(there);
}

static void unix_pair(int type)
{
    int ends[2];
    CHECK(socketpair(AF_UNIX, type, 0, ends) == 0);
    here = ends[0];
    there = ends[1];
}

static int listening(struct sockaddr_in *at)
{
    socklen_t size = sizeof *at;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    *at = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(bind(listener, (struct sockaddr *)at, size) == 0 && listen(listener, 4) == 0);
    getsockname(listener, (struct sockaddr *)at, &size);
    return listener;
}

static void tcp_pair(void)
{
    struct sockaddr_in at;
    int listener = listening(&at);
    there = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(there, (struct sockaddr *)&at, sizeof at) == 0);
    here = accept(listener, NULL, NULL);
    close(listener);
}

/* Each has an address. */
static void udp_pair(struct sockaddr_in *sender)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int *ends[] = {&there, &here};
    for (int i = 0; i < 2; i++) {
        at.sin_port = 0;
        *ends[i] = socket(AF_INET, SOCK_DGRAM, 0);
        CHECK(bind(*ends[i], (struct sockaddr *)&at, size) == 0);
        getsockname(*ends[i], (struct sockaddr *)&at, &size);
        if (i == 0)
            *sender = at;
    }
    CHECK(connect(there, (struct sockaddr *)&at, size) == 0);
}

static void two_words(void)
{
    CHECK(write(there, "ABCD", 4) == 4 && write(there, "EFGH", 4) == 4);
    poll(&(struct pollfd){.fd = here, .events = POLLIN}, 1, 1000);
}

/* ---- receiving ---- */

static void check_header(void)
{
    char word[4];
    struct iovec part = {word, sizeof word};
    struct msghdr *message = (struct msghdr *)frozen;
    start();
    *message = (struct msghdr){.msg_iov = &part, .msg_iovlen = 1, .msg_flags = -1};
    two_words();
    freeze();
    CHECK(LED(recvmsg)(here, message, 0) == 4 && memcmp(word, "ABCD", 4) == 0);
    CHECK(message->msg_flags == 0 && message->msg_controllen == 0 && message->msg_iov == &part);
    close_ends();
}

static void the_header_of_a_message_may_be_frozen(void)
{
    unix_pair(SOCK_STREAM);
    check_header();
    tcp_pair();
    check_header();
    unix_pair(SOCK_DGRAM);
    check_header();
}

static void a_message_has_its_name(void)
{
    char word[4];
    struct iovec part = {word, sizeof word};
    struct sockaddr_in sender;
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_name = frozen + 8, .msg_namelen = 6};
    start();
    udp_pair(&sender);
    two_words();
    freeze();
    CHECK(LED(recvmsg)(here, &message, 0) == 4 && memcmp(word, "ABCD", 4) == 0);
    CHECK(message.msg_namelen == sizeof sender);
    CHECK(memcmp(frozen + 8, &sender, 6) == 0 && memcmp(frozen + 14, &(int){0}, 4) == 0);
    close_ends();
}

/* Of a message longer than its buffer the kernel tells the length. */
static void a_cut_message_says_so(void)
{
    char two[2];
    struct iovec part = {two, sizeof two};
    struct msghdr *message = (struct msghdr *)frozen;
    start();
    unix_pair(SOCK_DGRAM);
    two_words();
    *message = (struct msghdr){.msg_iov = &part, .msg_iovlen = 1};
    freeze();
    CHECK(LED(recvmsg)(here, message, MSG_TRUNC) == 4 && message->msg_flags == MSG_TRUNC);
    close_ends();
}

static void a_failed_message_leaves_its_header(void)
{
    char word[4];
    struct iovec part = {word, sizeof word};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_flags = -1};
    start();
    unix_pair(SOCK_STREAM);
    CHECK(LED(recvmsg)(here, &message, MSG_DONTWAIT) < 0 && errno == EAGAIN);
    CHECK(message.msg_flags == -1);
    close_ends();
}

static void check_sender(const struct sockaddr_in *sender, ssize_t got, const char *word)
{
    const struct sockaddr *name = (struct sockaddr *)(frozen + 8);
    CHECK(got == 4 && memcmp(word, "ABCD", 4) == 0);
    CHECK(*(socklen_t *)frozen == (sender ? sizeof *sender : 0));
    CHECK(!sender || memcmp(name, sender, sizeof *sender) == 0);
    close_ends();
}

static void the_address_of_a_sender_may_be_frozen(void)
{
    char word[8];
    struct sockaddr_in sender;
    struct sockaddr *name = (struct sockaddr *)(frozen + 8);
    socklen_t *size = (socklen_t *)frozen;
    for (int type = 0; type < 3; type++) {
        start();
        if (type == 0)
            unix_pair(SOCK_STREAM);
        else if (type == 1)
            tcp_pair();
        else
            udp_pair(&sender);
        two_words();
        *size = sizeof(struct sockaddr_storage);
        freeze();
        check_sender(type == 2 ? &sender : NULL, LED(recvfrom)(here, word, 4, 0, name, size), word);
    }
}

#define WITH_ONE CMSG_SPACE(sizeof(int))

static void send_descriptor(int fd)
{
    _Alignas(struct cmsghdr) char control[WITH_ONE] = {0};
    struct iovec part = {"Z", 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = WITH_ONE};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    CHECK(sendmsg(there, &message, 0) == 1);
}

static void descriptors_come_through(void)
{
    char letter;
    int fd = -1;
    struct iovec part = {&letter, 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = frozen, .msg_controllen = 64};
    start();
    unix_pair(SOCK_STREAM);
    send_descriptor(here);
    memset(frozen, 7, 64);
    freeze();
    CHECK(LED(recvmsg)(here, &message, 0) == 1 && letter == 'Z' && message.msg_flags == 0);
    REQUIRE(message.msg_controllen == WITH_ONE && CMSG_FIRSTHDR(&message)->cmsg_type == SCM_RIGHTS);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    CHECK(fcntl(fd, F_GETFD) == 0 && frozen[WITH_ONE] == 7);
    close(fd);
    close_ends();
}

/* It would find nothing, and say so. */
static void what_is_out_of_band_is_not_read_twice(void)
{
    start();
    tcp_pair();
    CHECK(send(there, "!", 1, MSG_OOB) == 1);
    poll(&(struct pollfd){.fd = here, .events = POLLPRI}, 1, 1000);
    freeze();
    CHECK(LED(recv)(here, frozen, 1, MSG_OOB) < 0 && errno == EFAULT && waits == 0);
    close_ends();
}

/* ---- devices ---- */

/* Both ends of a terminal, on which a line waits; or -1. */
static int terminal(int *master)
{
    *master = posix_openpt(O_RDWR | O_NOCTTY);
    if (*master < 0 || grantpt(*master) < 0 || unlockpt(*master) < 0)
        return -1;
    int fd = open(ptsname(*master), O_RDWR | O_NOCTTY | O_NONBLOCK);
    CHECK(write(*master, "line\n", 5) == 5);
    poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 1000);
    return fd;
}

/* Read again it waits for the next one. */
static void a_line_that_is_lost_is_said_to_be(void)
{
    int master, fd;
    start();
    fd = terminal(&master);
    if (fd < 0)
        SKIP("no pseudoterminals");
    freeze();
    CHECK(LED(read)(fd, frozen, 100) < 0 && errno == EFAULT && waits == 0);
    close(fd);
    close(master);
}

static void a_line_of_a_stream_that_is_lost_is_said_to_be(void)
{
    int master, fd;
    FILE *file;
    start();
    fd = terminal(&master);
    if (fd < 0)
        SKIP("no pseudoterminals");
    file = fdopen(fd, "r");
    setvbuf(file, NULL, _IONBF, 0);
    freeze();
    CHECK(LED(fread)(frozen, 1, 100, file) == 0 && errno == EFAULT && ferror(file) && waits == 0);
    fclose(file);
    close(master);
}

static void devices_without_end_are_read_again(void)
{
    static const char *const names[] = {"/dev/zero", "/dev/random", "/dev/urandom"};
    for (int i = 0; i < 3; i++) {
        int fd = open(names[i], O_RDONLY);
        start();
        memset(frozen, 1, 100);
        freeze();
        CHECK(LED(read)(fd, frozen, 100) == 100 && waits == 1);
        CHECK(memcmp(frozen, (char[100]){[0 ... 99] = 1}, 100) != 0);
        close(fd);
    }
}

/* ---- time ---- */

#define TOLD 4

static uint64_t each_lasts; /* ns, each of the next calls, at whose end pages are frozen */
static struct epoll_event event;
static int fail; /* so many of them do */
static int64_t told[TOLD]; /* ms, how long they were told to wait */
static int n_told;

static int wait_instead(int64_t ms)
{
    told[n_told++ % TOLD] = ms;
    if (fail-- <= 0)
        return 1;
    now += each_lasts;
    freeze();
    errno = EFAULT;
    return -1;
}

static void thaw_in_a_moment(void)
{
    now += MS;
    thaw();
}

static void let_calls_fail(int times, uint64_t ns)
{
    start();
    now = 1000 * MS;
    when_waited_for = thaw_in_a_moment;
    fail = times;
    each_lasts = ns;
    n_told = 0;
}

static int64_t ms_of(const struct timespec *time)
{
    return time ? time->tv_sec * 1000 + time->tv_nsec / 1000000 : -1;
}

int __wrap_epoll_wait(int fd, struct epoll_event *events, int max, int timeout)
{
    (void)fd, (void)events, (void)max;
    return wait_instead(timeout);
}

int __wrap_epoll_pwait(int fd, struct epoll_event *events, int max, int timeout,
                       const sigset_t *mask)
{
    (void)mask;
    return __wrap_epoll_wait(fd, events, max, timeout);
}

int __real_poll(struct pollfd *fds, nfds_t n, int timeout);
int __wrap_poll(struct pollfd *fds, nfds_t n, int timeout)
{
    return fds ? __real_poll(fds, n, timeout) : wait_instead(timeout);
}

int __wrap_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask)
{
    (void)fds, (void)n, (void)mask;
    return wait_instead(ms_of(timeout));
}

static void who_waits_for_events_has_patience_again(void)
{
    let_calls_fail(3, 6000 * MS);
    CHECK(LED(epoll_wait)(0, &event, 1, -1) == 1 && n_told == 4);
}

/* Writing to a file that is only read makes its error. */
size_t __real_fread(void *buffer, size_t size, size_t n, FILE *file);
size_t __wrap_fread(void *buffer, size_t size, size_t n, FILE *file)
{
    if (fail-- <= 0)
        return __real_fread(buffer, size, n, file);
    now += each_lasts;
    freeze();
    fputc(0, file);
    errno = EFAULT;
    return 1;
}

static void who_gets_on_has_patience_again(void)
{
    char buffer[300];
    FILE *file = fopen("/dev/zero", "r");
    let_calls_fail(200, 50 * MS);
    CHECK(LED(fread)(buffer, 1, sizeof buffer, file) == sizeof buffer);
    fclose(file);
}

/* As an address is that is wrong for good. */
static void patience_ends(void)
{
    let_calls_fail(1000000, 0);
    CHECK(LED(epoll_wait)(0, &event, 1, -1) < 0 && errno == EFAULT);
    CHECK(now > 5900 * MS && now < 6100 * MS);
}

#define CHECK_TOLD(call)                                                                           \
    do {                                                                                           \
        let_calls_fail(2, 100 * MS);                                                               \
        CHECK((call) == 1 && n_told == 3);                                                         \
        CHECK(told[0] == 150 && told[1] == 49 && told[2] == 0);                                    \
    } while (0)

/* A call that has lasted for 100 ms and then waited for 1 ms is made again for the rest. */
static void time_that_is_over_is_not_waited_again(void)
{
    struct timespec time = {.tv_nsec = 150 * MS};
    CHECK_TOLD(LED(poll)(NULL, 0, 150));
    CHECK_TOLD(LED(ppoll)(NULL, 0, &time, NULL));
    CHECK_TOLD(LED(epoll_wait)(0, &event, 1, 150));
    CHECK_TOLD(LED(epoll_pwait)(0, &event, 1, 150, NULL));
    CHECK(ms_of(&time) == 150);
}

static void waiting_without_end_stays_so(void)
{
    let_calls_fail(1, 100 * MS);
    CHECK(LED(poll)(NULL, 0, -7) == 1 && told[0] == -7 && told[1] == -7);
    let_calls_fail(1, 100 * MS);
    CHECK(LED(ppoll)(NULL, 0, NULL, NULL) == 1 && told[0] == -1 && told[1] == -1);
    let_calls_fail(1, 100 * MS);
    CHECK(LED(epoll_wait)(0, &event, 1, 0) == 1 && told[0] == 0 && told[1] == 0);
}

static void times_that_are_none_stay_so(void)
{
    struct timespec wrong = {.tv_nsec = 2000 * MS}, longest = {.tv_sec = (int64_t)1 << 40};
    let_calls_fail(0, 0);
    CHECK(LED(ppoll)(NULL, 0, &wrong, NULL) == 1 && told[0] == 2000);
    let_calls_fail(1, 0);
    CHECK(LED(ppoll)(NULL, 0, &longest, NULL) == 1 && told[1] > (int64_t)1 << 32);
}

/* ---- streams ---- */

static FILE *pipe_file;

static void *read_pipe(void *nothing)
{
    char letters[10];
    LED(fread)(letters, 1, sizeof letters, pipe_file);
    return nothing;
}

static void who_is_cancelled_keeps_no_file_locked(void)
{
    int ends[2];
    pthread_t reader;
    start();
    REQUIRE(pipe(ends) == 0);
    pipe_file = fdopen(ends[0], "r");
    pthread_create(&reader, NULL, read_pipe, NULL);
    while (ftrylockfile(pipe_file) == 0) {
        funlockfile(pipe_file);
        usleep(1000);
    }
    pthread_cancel(reader);
    pthread_join(reader, NULL);
    REQUIRE(ftrylockfile(pipe_file) == 0);
    funlockfile(pipe_file);
    fclose(pipe_file);
    close(ends[1]);
}

/* ---- several engines ---- */

static void one_ends_and_a_third_comes_and_goes(void)
{
    if (waits == 1) {
        freezes_end();
        freezes_begin();
        freezes_end();
    } else if (waits == 3) {
        freezes_end();
    }
}

static void all_engines_are_waited_for(void)
{
    start();
    when_waited_for = one_ends_and_a_third_comes_and_goes;
    freezes_begin();
    freezes_begin();
    CHECK(freezes_wait(os_now_ns()) && waits == 3);
    while (freezes_ended() < freezes_begun())
        freezes_end();
}

/* ---- what has to be whole ---- */

static void send_pieces(size_t n, int times)
{
    char piece[PAGE_SIZE];
    memset(piece, 'x', n);
    for (int i = 0; i < times; i++)
        CHECK(write(there, piece, n) == (ssize_t)n);
    usleep(10000); /* until TCP has them on the other side */
}

/* n: of each piece, the second of which reaches into what is frozen. */
static void check_whole(char *at, size_t n)
{
    start();
    send_pieces(n, 2);
    freeze();
    errno = EXDEV;
    CHECK(LED(recv)(here, at, 2 * n, MSG_WAITALL) == (ssize_t)(2 * n) && errno == EXDEV);
    CHECK(waits == 1 && at[0] == 'x' && memcmp(at, at + 1, 2 * n - 1) == 0);
    close_ends();
}

static void who_wants_all_gets_all(void)
{
    unix_pair(SOCK_STREAM);
    check_whole(memory, PAGE_SIZE);
    unix_pair(SOCK_STREAM);
    check_whole(frozen - 1500, 1000);
    tcp_pair();
    check_whole(frozen - 1500, 1000);
}

static volatile sig_atomic_t alarms;

static void freeze_elsewhere(int signal)
{
    (void)signal;
    alarms++;
    freezes_begin();
    freezes_end();
}

static void who_is_interrupted_has_what_there_was(void)
{
    struct sigaction action = {.sa_handler = freeze_elsewhere};
    struct itimerval often = {{.tv_usec = 50000}, {.tv_usec = 50000}}, never = {{0}, {0}};
    start();
    sigaction(SIGALRM, &action, NULL);
    unix_pair(SOCK_STREAM);
    send_pieces(1000, 1);
    setitimer(ITIMER_REAL, &often, NULL);
    CHECK(LED(recv)(here, memory, 2000, MSG_WAITALL) == 1000 && alarms == 1);
    setitimer(ITIMER_REAL, &never, NULL);
    close_ends();
}

static void datagrams_are_not_put_together(void)
{
    start();
    unix_pair(SOCK_DGRAM);
    two_words();
    freeze();
    CHECK(LED(recv)(here, memory, 8, MSG_WAITALL) == 4);
    close_ends();
}

static void few_random_bytes_are_whole(void)
{
    start();
    freeze();
    errno = EXDEV;
    CHECK(LED(getrandom)(frozen - 100, 256, 0) == 256 && waits == 1 && errno == EXDEV);
    CHECK(memcmp(frozen + 100, (char[56]){0}, 56) != 0);
}

/* ---- between processes ---- */

static int copies;
static bool freezes_often; /* in each copy */

ssize_t __real_process_vm_readv(pid_t pid, const struct iovec *here, unsigned long count,
                                const struct iovec *there, unsigned long there_count,
                                unsigned long flags);
ssize_t __wrap_process_vm_readv(pid_t pid, const struct iovec *here, unsigned long count,
                                const struct iovec *there, unsigned long there_count,
                                unsigned long flags)
{
    copies++;
    if (freezes_often)
        freeze_elsewhere(0);
    return __real_process_vm_readv(pid, here, count, there, there_count, flags);
}

static char other[2 * PAGE_SIZE]; /* the other process's memory */
static struct iovec from = {other, sizeof other}, to = {NULL, sizeof other};

/* A copy from or to memory of which the second page is frozen. */
static void begin_copy(void)
{
    memset(other, 7, sizeof other);
    to.iov_base = frozen - PAGE_SIZE;
    start();
    freeze();
    errno = EXDEV;
}

static bool is_copied(ssize_t got)
{
    return got == sizeof other && waits > 0 && errno == EXDEV &&
           !memcmp(to.iov_base, other, sizeof other);
}

#ifdef __x86_64__
static void copies_by_number_are_whole(void)
{
    begin_copy();
    CHECK(is_copied(LED(syscall)(SYS_process_vm_readv, (long)getpid(), &to, 1L, &from, 1L, 0L)));
    start();
    memset(to.iov_base, 9, sizeof other);
    CHECK(LED(syscall)(SYS_process_vm_writev, (long)getpid(), &to, 1L, &from, 1L, 0L) ==
          sizeof other);
    CHECK(other[0] == 9 && other[sizeof other - 1] == 9);
    CHECK(LED(syscall)(SYS_process_vm_readv, (long)getpid(), &to, 1L, &from, 1L, 1L) == -1);
    CHECK(errno == EINVAL); /* there are no flags */
}

static volatile int made;

static void be_made(void)
{
    made = 1;
    for (;;)
        syscall(SYS_exit, 0);
}

/* Six arguments, errors, and a thread that comes out of the call on a stack of its own. */
static void other_calls_by_number_go_on(void)
{
    start();
    CHECK(LED(syscall)(SYS_getpid) == getpid());
    char name[] = "/tmp/retries.XXXXXX";
    int fd = mkstemp(name);
    CHECK(fd >= 0 && unlink(name) == 0 && pwrite(fd, "k", 1, PAGE_SIZE) == 1);
    char *mapped = (char *)LED(syscall)(SYS_mmap, NULL, (long)PAGE_SIZE, (long)PROT_READ,
                                        (long)MAP_PRIVATE, (long)fd, (long)PAGE_SIZE);
    CHECK(mapped != MAP_FAILED && *mapped == 'k');
    munmap(mapped, PAGE_SIZE);
    close(fd);
    errno = 0;
    CHECK(LED(syscall)(SYS_close, -1L) == -1 && errno == EBADF);
    static _Alignas(16) char stack[64 << 10];
    void (**top)(void) = (void (**)(void))(stack + sizeof stack) - 2;
    *top = be_made; /* where the call returns to in the child */
    long child = LED(syscall)(SYS_clone, (long)(CLONE_VM | CLONE_FILES | SIGCHLD), top, 0L, 0L, 0L);
    int status;
    CHECK(child > 0 && waitpid((pid_t)child, &status, 0) == child && status == 0 && made == 1);
}
#endif

/* The first page is copied, the second one is frozen, and all of it arrives. */
static void copies_between_processes_are_whole(void)
{
    begin_copy();
    CHECK(is_copied(LED(process_vm_readv)(getpid(), &to, 1, &from, 1, 0)));
    start();
    memset(to.iov_base, 9, sizeof other);
    mprotect(frozen, PAGE_SIZE, PROT_NONE);
    freezes_begin();
    is_frozen = 1;
    CHECK(LED(process_vm_writev)(getpid(), &to, 1, &from, 1, 0) == sizeof other);
    CHECK(waits > 0 && other[0] == 9 && other[sizeof other - 1] == 9);
    void *gap = mmap(NULL, 2 * PAGE_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap((char *)gap + PAGE_SIZE, PAGE_SIZE);
    struct iovec partly = {gap, 2 * PAGE_SIZE}; /* a part of it is not there at all */
    start();
    copies = 0;
    CHECK(LED(process_vm_readv)(getpid(), &to, 1, &partly, 1, 0) == PAGE_SIZE && copies == 1);
    freezes_often = true;
    CHECK(LED(process_vm_readv)(getpid(), &to, 1, &partly, 1, 0) == PAGE_SIZE);
    CHECK(copies > 2 && copies < 100);
    freezes_often = false;
    munmap(gap, PAGE_SIZE);
}

/* ---- connections ---- */

static int with_flags(int fd, struct sockaddr *from, socklen_t *size)
{
    return LED(accept4)(fd, from, size, SOCK_CLOEXEC);
}

static void check_accepted(int (*accepting)(int, struct sockaddr *, socklen_t *))
{
    struct sockaddr_in at;
    struct sockaddr_in *from = (struct sockaddr_in *)(frozen + 8);
    socklen_t *size = (socklen_t *)frozen, length = sizeof at;
    start();
    int listener = listening(&at);
    there = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(there, (struct sockaddr *)&at, sizeof at) == 0);
    getsockname(there, (struct sockaddr *)&at, &length);
    *size = 4;
    freeze();
    here = accepting(listener, (struct sockaddr *)from, size);
    CHECK(here >= 0 && *size == sizeof at);
    CHECK(from->sin_port == at.sin_port && from->sin_addr.s_addr == 0);
    close(listener);
    close_ends();
}

static void who_connects_may_have_a_frozen_address(void)
{
    check_accepted(LED(accept));
    check_accepted(with_flags);
}

/* ---- asking ---- */

static pid_t ended_child(void)
{
    siginfo_t info;
    pid_t child = fork();
    if (!child)
        _exit(7);
    while (syscall(SYS_waitid, P_PID, child, &info, WEXITED | WNOWAIT, NULL) < 0)
        ;
    return child;
}

static bool has_seven(pid_t child, pid_t got, const int *status)
{
    return got == child && WIFEXITED(*status) && WEXITSTATUS(*status) == 7;
}

static void a_child_is_told_of_in_frozen_memory(void)
{
    int *status = (int *)(void *)frozen;
    struct rusage *usage = (struct rusage *)(void *)(frozen + 256);
    siginfo_t *info = (siginfo_t *)(void *)frozen;
    pid_t child = ended_child();
    start();
    freeze();
    CHECK(has_seven(child, LED(waitpid)(child, status, 0), status));
    child = ended_child();
    start();
    memset(usage, 255, sizeof *usage);
    freeze();
    CHECK(has_seven(child, LED(wait4)(child, status, 0, usage), status) && usage->ru_maxrss > 0);
    child = ended_child();
    start();
    freeze();
    CHECK(has_seven(child, LED(wait3)(status, 0, usage), status));
    child = ended_child();
    start();
    freeze();
    CHECK(has_seven(child, LED(wait)(status), status));
    child = ended_child();
    start();
    freeze();
    CHECK(LED(waitid)(P_PID, (id_t)child, info, WEXITED) == 0);
    CHECK(info->si_pid == child && info->si_status == 7 && info->si_signo == SIGCHLD);
    start();
    *status = -1;
    CHECK(LED(waitpid)(-1, status, WNOHANG) < 0 && errno == ECHILD && *status == -1);
}

/* It would be told to be none, the second time. */
static void an_error_of_a_socket_is_not_lost(void)
{
    struct sockaddr_in at;
    int *value = (int *)(void *)frozen, listener = listening(&at);
    socklen_t *size = (socklen_t *)(void *)(frozen + 8);
    close(listener); /* so that nobody is there */
    start();
    here = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    there = dup(here);
    if (connect(here, (struct sockaddr *)&at, sizeof at) == 0 || errno != EINPROGRESS)
        SKIP("such connections are refused at once");
    poll(&(struct pollfd){.fd = here, .events = POLLOUT}, 1, 1000);
    *size = sizeof *value;
    freeze();
    CHECK(LED(getsockopt)(here, SOL_SOCKET, SO_ERROR, value, size) == 0);
    CHECK(*value == ECONNREFUSED && *size == sizeof *value);
    CHECK(LED(getsockopt)(here, SOL_SOCKET, SO_ERROR, value, size) == 0 && *value == 0);
    close_ends();
}

#define CHECK_ASKED(call)                                                                          \
    do {                                                                                           \
        start();                                                                                   \
        freeze();                                                                                  \
        CHECK((call) >= 0);                                                                        \
    } while (0)

static void what_is_told_again_is_asked_again(void)
{
    struct sockaddr *name = (struct sockaddr *)(void *)(frozen + 8);
    socklen_t *size = (socklen_t *)(void *)frozen;
    int *fds = (int *)(void *)frozen;
    tcp_pair();
    CHECK_ASKED(LED(getsockname)(here, name, size));
    CHECK_ASKED(LED(getpeername)(here, name, size));
    close_ends();
    CHECK_ASKED(LED(pipe)(fds));
    CHECK(close(fds[0]) == 0 && close(fds[1]) == 0);
    CHECK_ASKED(LED(pipe2)(fds, O_CLOEXEC));
    CHECK(close(fds[0]) == 0 && close(fds[1]) == 0);
    CHECK_ASKED(LED(socketpair)(AF_UNIX, SOCK_STREAM, 0, fds));
    CHECK(close(fds[0]) == 0 && close(fds[1]) == 0);
    CHECK_ASKED(LED(readlink)("/proc/self/exe", frozen, 100));
    CHECK_ASKED(LED(readlinkat)(AT_FDCWD, "/proc/self/exe", frozen, 100));
    CHECK_ASKED(LED(sched_getaffinity)(0, 512, (cpu_set_t *)(void *)frozen));
    CHECK_ASKED(LED(sysinfo)((struct sysinfo *)(void *)frozen));
    CHECK_ASKED(LED(uname)((struct utsname *)(void *)frozen));
}

/* ---- bad addresses ---- */

static char *gap, *read_only; /* nothing is mapped there; and a page that nobody may write */

/* What one can see of a call that was given a bad address. */
struct outcome {
    ssize_t got;
    int error, flags, connection, next; /* the number that the next descriptor has */
    size_t control, left; /* the length of what comes next */
};

/* As led functions, and straight to the kernel. */
static ssize_t by_kernel_recvmsg(int fd, struct msghdr *message, int flags)
{
    return syscall(SYS_recvmsg, fd, message, flags);
}

static ssize_t by_kernel_recvfrom(int fd, void *buffer, size_t n, int flags, struct sockaddr *from,
                                  socklen_t *size)
{
    return syscall(SYS_recvfrom, fd, buffer, n, flags, from, size);
}

static int by_kernel_accept(int fd, struct sockaddr *from, socklen_t *size)
{
    return (int)syscall(SYS_accept4, fd, from, size, 0);
}

static int by_kernel_with_flags(int fd, struct sockaddr *from, socklen_t *size)
{
    return (int)syscall(SYS_accept4, fd, from, size, SOCK_CLOEXEC);
}

static struct outcome outcome_of(ssize_t got, int fd)
{
    char word[8];
    struct outcome outcome = {.got = got, .error = got < 0 ? errno : 0, .next = dup(0)};
    close(outcome.next);
    outcome.left = (size_t)syscall(SYS_recvfrom, fd, word, sizeof word, MSG_DONTWAIT, NULL, NULL);
    return outcome;
}

static bool is_same(const struct outcome *one, const struct outcome *two)
{
    return one->got == two->got && one->error == two->error && one->flags == two->flags &&
           one->control == two->control && one->left == two->left && one->next == two->next &&
           one->connection == two->connection;
}

enum bad { HEADER, HEADER_READ_ONLY, NAME, PARTS, PART, CONTROL, BADS };

static struct outcome receive_badly(ssize_t (*receive)(int, struct msghdr *, int), enum bad bad)
{
    char word[4];
    struct sockaddr_in sender;
    struct iovec part = {bad == PART ? gap : word, sizeof word};
    struct msghdr message = {.msg_iov = bad == PARTS ? (struct iovec *)gap : &part,
                             .msg_iovlen = 1,
                             .msg_name = bad == NAME ? gap : NULL,
                             .msg_namelen = sizeof sender,
                             .msg_control = gap,
                             .msg_controllen = bad == CONTROL ? CMSG_SPACE(sizeof(int)) : 0};
    struct msghdr *at = bad == HEADER ? (struct msghdr *)gap : &message;
    if (bad == NAME) {
        udp_pair(&sender);
        two_words();
    } else {
        unix_pair(SOCK_DGRAM);
        send_descriptor(there);
        CHECK(send(there, "ABC", 3, 0) == 3);
    }
    if (bad == HEADER_READ_ONLY) {
        mprotect(read_only, PAGE_SIZE, PROT_READ | PROT_WRITE);
        at = memcpy(read_only, &message, sizeof message);
        mprotect(read_only, PAGE_SIZE, PROT_READ);
    }
    struct outcome outcome = outcome_of(receive(here, at, 0), here);
    outcome.flags = message.msg_flags;
    outcome.control = message.msg_controllen;
    close_ends();
    return outcome;
}

static struct outcome receive_from_badly(ssize_t (*receive)(int, void *, size_t, int,
                                                            struct sockaddr *, socklen_t *),
                                         char *from, socklen_t *size)
{
    char word[4];
    struct sockaddr_in sender;
    udp_pair(&sender);
    two_words();
    ssize_t got = receive(here, word, sizeof word, 0, (struct sockaddr *)(void *)from, size);
    struct outcome outcome = outcome_of(got, here);
    close_ends();
    return outcome;
}

static struct outcome accept_badly(int (*accepting)(int, struct sockaddr *, socklen_t *),
                                   char *from, socklen_t *size)
{
    struct sockaddr_in at;
    int listener = listening(&at);
    there = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(there, (struct sockaddr *)&at, sizeof at) == 0);
    here = accepting(listener, (struct sockaddr *)(void *)from, size);
    struct outcome outcome = outcome_of(here, listener);
    close(listener);
    close_ends();
    return outcome;
}

static void check_children(void)
{
    int status;
    pid_t child = ended_child();
    CHECK(LED(wait4)(child, (int *)(void *)gap, 0, NULL) < 0 && errno == EFAULT);
    CHECK(waitpid(child, &status, 0) < 0 && errno == ECHILD); /* as after the kernel's EFAULT */
    child = ended_child();
    CHECK(LED(wait4)(child, &status, 0, (struct rusage *)(void *)gap) < 0 && errno == EFAULT);
    child = ended_child();
    CHECK(LED(waitid)(P_PID, (id_t)child, (siginfo_t *)(void *)gap, WEXITED) < 0);
    CHECK(errno == EFAULT && waitpid(child, &status, 0) < 0 && errno == ECHILD);
    socklen_t size = 4;
    unix_pair(SOCK_STREAM);
    CHECK(LED(getsockopt)(here, SOL_SOCKET, SO_TYPE, gap, &size) < 0 && errno == EFAULT);
    CHECK(LED(getsockopt)(here, SOL_SOCKET, SO_TYPE, &status, (socklen_t *)(void *)gap) < 0);
    CHECK(errno == EFAULT);
    close_ends();
}

static void check_addresses(char *from, socklen_t *size)
{
    struct outcome one = receive_from_badly(LED(recvfrom), from, size);
    struct outcome two = receive_from_badly(by_kernel_recvfrom, from, size);
    CHECK(is_same(&one, &two) && one.error == EFAULT);
    one = accept_badly(LED(accept), from, size);
    two = accept_badly(by_kernel_accept, from, size);
    CHECK(is_same(&one, &two) && one.error == EFAULT);
    one = accept_badly(with_flags, from, size);
    two = accept_badly(by_kernel_with_flags, from, size);
    CHECK(is_same(&one, &two) && one.error == EFAULT);
}

/* What the kernel would have said, and nothing else is left of the call than there would have been. */
static void bad_addresses_are_answered_as_by_the_kernel(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    SKIP("the sanitizer's own calls read and write what they are given");
#endif
    struct sigaction before;
    socklen_t size = 16;
    char name[16];
    sigaction(SIGSEGV, NULL, &before);
    REQUIRE(handlers_install() == 0);
    gap = mmap(NULL, PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    read_only = mmap(NULL, PAGE_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (enum bad bad = HEADER; bad < BADS; bad++) {
        struct outcome one = receive_badly(LED(recvmsg), bad);
        struct outcome two = receive_badly(by_kernel_recvmsg, bad);
        CHECK(is_same(&one, &two) &&
              (bad == CONTROL ? one.flags == MSG_CTRUNC : one.error == EFAULT));
    }
    check_addresses(gap, &size);
    check_addresses(name, (socklen_t *)(void *)gap);
    check_addresses(read_only, &size);
    check_addresses(name, (socklen_t *)(void *)read_only);
    check_children();
    munmap(gap, PAGE_SIZE);
    munmap(read_only, PAGE_SIZE);
    sigaction(SIGSEGV, &before, NULL);
}

/* ---- queues ---- */

struct queued {
    long type;
    char text[8];
};

static int queue_of_two(void)
{
    int queue = msgget(IPC_PRIVATE, 0600);
    struct queued one = {1, "one"}, two = {2, "two"};
    CHECK(msgsnd(queue, &one, 4, 0) == 0 && msgsnd(queue, &two, 4, 0) == 0);
    return queue;
}

/* A message whose text could not be written is gone: so it is never given frozen memory. */
static void the_message_of_a_queue_is_not_lost(void)
{
    int queue = queue_of_two();
    struct queued *at = (struct queued *)(void *)frozen, here_too;
    REQUIRE(queue >= 0);
    start();
    freeze();
    CHECK(LED(msgrcv)(queue, at, sizeof at->text, 2, 0) == 4 && at->type == 2);
    CHECK(strcmp(at->text, "two") == 0 && at->text[4] == 0);
    CHECK(LED(msgrcv)(queue, &here_too, 2, 0, 0) < 0 && errno == E2BIG);
    CHECK(LED(msgrcv)(queue, &here_too, 2, 0, MSG_NOERROR) == 2 && here_too.type == 1);
    CHECK(LED(msgrcv)(queue, &here_too, 2, 0, IPC_NOWAIT) < 0 && errno == ENOMSG);
    msgctl(queue, IPC_RMID, NULL);
}

/* ---- memory that moves ---- */

/* A file of two pages, the first of which is mapped where pages are frozen. */
static int map_file(void)
{
    int file = os_memfd("ksmpy-test", 2 * PAGE_SIZE);
    CHECK(pwrite(file, "first", 6, 0) == 6 && pwrite(file, "second", 7, PAGE_SIZE) == 7);
    CHECK(mmap(frozen, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, 0) ==
          frozen);
    return file;
}

/* What is behind the first page once that was made longer. */
static char *grown(int file)
{
    char *at = LED(mremap)(frozen, PAGE_SIZE, 2 * PAGE_SIZE, MREMAP_MAYMOVE);
    CHECK(at != MAP_FAILED && strcmp(at, "first") == 0);
    close(file);
    map_memory();
    return at + PAGE_SIZE;
}

static void merged_memory_that_is_frozen_grows_with_zeros(void)
{
    uint64_t inode, dev;
    start();
    int store = map_file();
    REQUIRE(os_know_file(store, &inode, &dev) == 0);
    moving_know_store(inode, dev);
    freeze();
    CHECK(grown(store)[0] == 0);
    CHECK(waits == 1 && !is_frozen);
}

/* The program has no descriptor left by which its mappings could be looked at. */
static void merged_memory_grows_with_zeros_where_no_descriptor_is_free(void)
{
    uint64_t inode, dev;
    struct rlimit before, none;
    start();
    int store = map_file();
    REQUIRE(os_know_file(store, &inode, &dev) == 0 && getrlimit(RLIMIT_NOFILE, &before) == 0);
    moving_know_store(inode, dev);
    none = (struct rlimit){STDERR_FILENO + 1, before.rlim_max};
    REQUIRE(setrlimit(RLIMIT_NOFILE, &none) == 0);
    char *at = LED(mremap)(frozen, PAGE_SIZE, 2 * PAGE_SIZE, MREMAP_MAYMOVE);
    REQUIRE(setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK(at != MAP_FAILED && strcmp(at, "first") == 0 && at[PAGE_SIZE] == 0);
    close(store);
    map_memory();
}

static void files_of_the_program_grow_as_ever(void)
{
    start();
    CHECK(strcmp(grown(map_file()), "second") == 0);
}

/* ---- checked ---- */

static void checked_calls_are_led(void)
{
#ifdef __GLIBC__
    struct timespec time = {.tv_nsec = 150 * MS};
    start();
    unix_pair(SOCK_STREAM);
    two_words();
    freeze();
    CHECK(LED(__recvfrom_chk)(here, frozen, 4, 4, 0, NULL, NULL) == 4);
    close_ends();
    CHECK_TOLD(LED(__ppoll_chk)(NULL, 0, &time, NULL, 0));
#else
    SKIP("no such calls");
#endif
}

/* ---- main ---- */

int main(void)
{
    map_memory();
    retries_lead();
    RUN(the_header_of_a_message_may_be_frozen);
    RUN(a_message_has_its_name);
    RUN(a_cut_message_says_so);
    RUN(a_failed_message_leaves_its_header);
    RUN(the_address_of_a_sender_may_be_frozen);
    RUN(descriptors_come_through);
    RUN(what_is_out_of_band_is_not_read_twice);
    RUN(a_line_that_is_lost_is_said_to_be);
    RUN(a_line_of_a_stream_that_is_lost_is_said_to_be);
    RUN(devices_without_end_are_read_again);
    RUN(who_waits_for_events_has_patience_again);
    RUN(who_gets_on_has_patience_again);
    RUN(patience_ends);
    RUN(time_that_is_over_is_not_waited_again);
    RUN(waiting_without_end_stays_so);
    RUN(times_that_are_none_stay_so);
    RUN(who_is_cancelled_keeps_no_file_locked);
    RUN(all_engines_are_waited_for);
    RUN(who_wants_all_gets_all);
    RUN(who_is_interrupted_has_what_there_was);
    RUN(datagrams_are_not_put_together);
    RUN(few_random_bytes_are_whole);
    RUN(copies_between_processes_are_whole);
#ifdef __x86_64__
    RUN(copies_by_number_are_whole);
    RUN(other_calls_by_number_go_on);
#endif
    RUN(who_connects_may_have_a_frozen_address);
    RUN(a_child_is_told_of_in_frozen_memory);
    RUN(an_error_of_a_socket_is_not_lost);
    RUN(what_is_told_again_is_asked_again);
    RUN(bad_addresses_are_answered_as_by_the_kernel);
    RUN(the_message_of_a_queue_is_not_lost);
    RUN(merged_memory_that_is_frozen_grows_with_zeros);
    RUN(merged_memory_grows_with_zeros_where_no_descriptor_is_free);
    RUN(files_of_the_program_grow_as_ever);
    RUN(checked_calls_are_led);
    return finish();
}
