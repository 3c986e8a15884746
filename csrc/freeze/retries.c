#include "freeze/retries.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/pages.h"
#include "freeze/asking.h"
#include "freeze/attempts.h"
#include "freeze/cross_memory.h"
#include "freeze/moving.h"
#include "freeze/receiving.h"
#include "freeze/signal_masks.h"
#include "freeze/signal_stacks.h"
#include "freeze/waiting.h"
#include "os/fortified.h"
#include "os/guard.h"
#include "os/imports.h"

#define COPIED_AT_ONCE 64 /* bytes */

/* ---- reading ---- */

static bool is_regular(int fd)
{
    struct stat status;
    return fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

/* May frozen memory begin there, give or take the few bytes that some processors copy at once? */
static bool is_edge(const char *address)
{
    return -(uintptr_t)address % PAGE_SIZE <= COPIED_AT_ONCE;
}

/*
 * A read got less than it asked for: may that be because of a freeze?  A read of what is left then
 * tells: it finds the file's end, or fails, or goes on.
 */
static bool is_cut(const struct attempt *attempt, int fd)
{
    if (!attempt_met_freeze(attempt))
        return false;
    bool regular = is_regular(fd);
    errno = attempt->error;
    return regular;
}

/* at: where in the file; NULL: at its position, which moves. */
static ssize_t read_at(int fd, char *buffer, size_t n, const off_t *at)
{
    struct attempt now = attempt_begin();
    size_t done = 0;
    for (;;) {
        ssize_t got = at ? pread(fd, buffer + done, n - done, *at + (off_t)done)
                         : read(fd, buffer + done, n - done);
        if (got < 0 && attempt_is_read_again(&now, fd))
            continue;
        if (got <= 0)
            return done ? (ssize_t)done : got;
        done += (size_t)got;
        attempt_got_on(&now);
        if (done == n || !is_edge(buffer + done) || !is_cut(&now, fd))
            return (ssize_t)done;
    }
}

static ssize_t again_read(int fd, void *buffer, size_t n)
{
    return read_at(fd, buffer, n, NULL);
}

static ssize_t again_pread(int fd, void *buffer, size_t n, off_t at)
{
    return read_at(fd, buffer, n, &at);
}

/* Fills what the first `done` bytes have left of the buffers. */
static ssize_t read_rest(int fd, const struct iovec *buffers, int count, const off_t *at,
                         size_t done)
{
    size_t before = 0;
    for (int i = 0; i < count; before += buffers[i++].iov_len) {
        if (done >= before + buffers[i].iov_len)
            continue;
        size_t skipped = done - before, rest = buffers[i].iov_len - skipped;
        off_t place = at ? *at + (off_t)done : 0;
        ssize_t got = read_at(fd, (char *)buffers[i].iov_base + skipped, rest, at ? &place : NULL);
        done += got > 0 ? (size_t)got : 0;
        if (got < (ssize_t)rest)
            break;
    }
    return (ssize_t)done;
}

/* May frozen memory be what ended a read after so many bytes?  Each buffer may lie in such. */
static bool is_edge_in(const struct iovec *buffers, int count, size_t done)
{
    int i = 0;
    for (; i < count - 1 && done > buffers[i].iov_len; i++)
        done -= buffers[i].iov_len;
    return done == buffers[i].iov_len || is_edge((const char *)buffers[i].iov_base + done);
}

static ssize_t go_on(const struct attempt *now, int fd, const struct iovec *buffers, int count,
                     const off_t *at, ssize_t got)
{
    if (got <= 0 || (size_t)got == bytes_in(buffers, count))
        return got;
    bool cut = is_edge_in(buffers, count, (size_t)got) && is_cut(now, fd);
    return cut ? read_rest(fd, buffers, count, at, (size_t)got) : got;
}

static ssize_t again_readv(int fd, const struct iovec *buffers, int count)
{
    struct attempt now = attempt_begin();
    ssize_t got;
    MAKE(got, attempt_is_read_again(&now, fd), readv(fd, buffers, count));
    return go_on(&now, fd, buffers, count, NULL, got);
}

static ssize_t again_preadv(int fd, const struct iovec *buffers, int count, off_t at)
{
    struct attempt now = attempt_begin();
    ssize_t got;
    MAKE(got, attempt_is_read_again(&now, fd), preadv(fd, buffers, count, at));
    return go_on(&now, fd, buffers, count, &at, got);
}

/* With flags it may be that no more is wanted than was there. */
static ssize_t again_preadv2(int fd, const struct iovec *buffers, int count, off_t at, int flags)
{
    struct attempt now = attempt_begin();
    ssize_t got;
    MAKE(got, attempt_is_read_again(&now, fd), preadv2(fd, buffers, count, at, flags));
    return flags ? got : go_on(&now, fd, buffers, count, at == -1 ? NULL : &at, got);
}

/* Up to 256 bytes come whole or not at all; of more the rest is as good later. */
static ssize_t again_getrandom(void *buffer, size_t n, unsigned flags)
{
    struct attempt now = attempt_begin();
    size_t done = 0;
    for (;;) {
        ssize_t got = getrandom((char *)buffer + done, n - done, flags);
        if (got < 0 && attempt_is_again(&now))
            continue;
        if (got <= 0)
            return done ? (ssize_t)done : got;
        done += (size_t)got;
        attempt_got_on(&now);
        if (done == n || !attempt_met_freeze(&now))
            return (ssize_t)done;
    }
}

static size_t fread_locked(char *buffer, size_t n, FILE *file, int fd, struct attempt *now)
{
    size_t done = 0;
    do {
        size_t got = fread(buffer + done, 1, n - done, file);
        if (got)
            attempt_got_on(now);
        done += got;
    } while (done < n && ferror(file) && attempt_is_read_again(now, fd) && (clearerr(file), true));
    return done;
}

static void unlock(void *file)
{
    funlockfile(file);
}

/*
 * Bytes are read, not elements, so that none is left in the middle; the error that is cleared came
 * of this call, as there was none before.  A thread that is cancelled while it reads leaves the file
 * unlocked, as fread() does.
 */
static size_t again_fread(void *buffer, size_t size, size_t count, FILE *file)
{
    size_t n, done;
    if (!size || __builtin_mul_overflow(size, count, &n) || ferror(file))
        return fread(buffer, size, count, file);
    struct attempt now = attempt_begin();
    int fd = fileno(file);
    errno = now.error;
    flockfile(file);
    pthread_cleanup_push(unlock, file);
    done = fread_locked(buffer, n, file, fd, &now);
    pthread_cleanup_pop(1);
    return done / size;
}

/* ---- writing: where frozen pages may not be read either ---- */

static ssize_t again_write(int fd, const void *buffer, size_t n)
{
    struct attempt now = attempt_begin();
    ssize_t got;
    MAKE(got, attempt_is_again(&now), write(fd, buffer, n));
    return got;
}

static ssize_t again_pwrite(int fd, const void *buffer, size_t n, off_t at)
{
    struct attempt now = attempt_begin();
    ssize_t got;
    MAKE(got, attempt_is_again(&now), pwrite(fd, buffer, n, at));
    return got;
}

static ssize_t again_writev(int fd, const struct iovec *buffers, int count)
{
    struct attempt now = attempt_begin();
    ssize_t got;
    MAKE(got, attempt_is_again(&now), writev(fd, buffers, count));
    return got;
}

static ssize_t again_send(int fd, const void *buffer, size_t n, int flags)
{
    struct attempt now = attempt_begin();
    ssize_t got;
    MAKE(got, attempt_is_again(&now), send(fd, buffer, n, flags));
    return got;
}

static ssize_t again_sendto(int fd, const void *buffer, size_t n, int flags,
                            const struct sockaddr *to, socklen_t size)
{
    struct attempt now = attempt_begin();
    ssize_t got;
    MAKE(got, attempt_is_again(&now), sendto(fd, buffer, n, flags, to, size));
    return got;
}

static ssize_t again_sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct attempt now = attempt_begin();
    ssize_t got;
    MAKE(got, attempt_is_again(&now), sendmsg(fd, message, flags));
    return got;
}

/* ---- the same, checked ---- */

#ifdef __GLIBC__
/* What is too long ends the program, as it would have. */
static ssize_t again_read_chk(int fd, void *buffer, size_t n, size_t room)
{
    return n > room ? __read_chk(fd, buffer, n, room) : again_read(fd, buffer, n);
}

static ssize_t again_pread_chk(int fd, void *buffer, size_t n, off_t at, size_t room)
{
    return n > room ? __pread_chk(fd, buffer, n, at, room) : again_pread(fd, buffer, n, at);
}

static ssize_t again_recv_chk(int fd, void *buffer, size_t n, size_t room, int flags)
{
    return n > room ? __recv_chk(fd, buffer, n, room, flags) : receiving_recv(fd, buffer, n, flags);
}

static ssize_t again_recvfrom_chk(int fd, void *buffer, size_t n, size_t room, int flags,
                                  struct sockaddr *from, socklen_t *size)
{
    return n > room ? __recvfrom_chk(fd, buffer, n, room, flags, from, size)
                    : receiving_recvfrom(fd, buffer, n, flags, from, size);
}

static size_t again_fread_chk(void *buffer, size_t room, size_t size, size_t count, FILE *file)
{
    size_t n;
    if (__builtin_mul_overflow(size, count, &n) || n > room)
        return __fread_chk(buffer, room, size, count, file);
    return again_fread(buffer, size, count, file);
}

static int again_poll_chk(struct pollfd *fds, nfds_t n, int timeout, size_t room)
{
    return room / sizeof *fds < n ? __poll_chk(fds, n, timeout, room)
                                  : waiting_poll(fds, n, timeout);
}

static int again_ppoll_chk(struct pollfd *fds, nfds_t n, const struct timespec *timeout,
                           const sigset_t *mask, size_t room)
{
    return room / sizeof *fds < n ? __ppoll_chk(fds, n, timeout, mask, room)
                                  : waiting_ppoll(fds, n, timeout, mask);
}
#endif

#define LED_TO(name, ours) {#name, (uintptr_t)(name), (uintptr_t)(ours)}
#define LED_AS(name, like) LED_TO(name, again_##like)
#define LED(name) LED_AS(name, name)

static const struct os_import imports[] = {
#ifdef __GLIBC__
    LED_AS(__fread_chk, fread_chk),
    LED_AS(__poll_chk, poll_chk),
    LED_AS(__ppoll_chk, ppoll_chk),
    LED_AS(__pread64_chk, pread_chk),
    LED_AS(__pread_chk, pread_chk),
    LED_AS(__read_chk, read_chk),
    LED_AS(__recv_chk, recv_chk),
    LED_AS(__recvfrom_chk, recvfrom_chk),
#endif
    LED_TO(accept, receiving_accept),
    LED_TO(accept4, receiving_accept4),
    LED_TO(epoll_pwait, waiting_epoll_pwait),
    LED_TO(epoll_wait, waiting_epoll_wait),
    LED(fread),
    LED_TO(getpeername, asking_getpeername),
    LED(getrandom),
    LED_TO(getsockname, asking_getsockname),
    LED_TO(getsockopt, asking_getsockopt),
    LED_TO(mremap, moving_mremap),
    LED_TO(msgrcv, asking_msgrcv),
    LED_TO(pipe, asking_pipe),
    LED_TO(pipe2, asking_pipe2),
    LED_TO(poll, waiting_poll),
    LED_TO(ppoll, waiting_ppoll),
    LED(pread),
#ifdef __GLIBC__
    LED_AS(pread64, pread),
#endif
    LED(preadv),
    LED(preadv2),
#ifdef __GLIBC__
    LED_AS(preadv64, preadv),
    LED_AS(preadv64v2, preadv2),
#endif
    LED_TO(process_vm_readv, cross_memory_process_vm_readv),
    LED_TO(process_vm_writev, cross_memory_process_vm_writev),
    LED_TO(pthread_sigmask, signal_masks_pthread_sigmask),
    LED(pwrite),
#ifdef __GLIBC__
    LED_AS(pwrite64, pwrite),
#endif
    LED(read),
    LED_TO(readlink, asking_readlink),
    LED_TO(readlinkat, asking_readlinkat),
    LED(readv),
    LED_TO(recv, receiving_recv),
    LED_TO(recvfrom, receiving_recvfrom),
    LED_TO(recvmsg, receiving_recvmsg),
    LED_TO(sched_getaffinity, asking_sched_getaffinity),
    LED(send),
    LED(sendmsg),
    LED(sendto),
    LED_TO(sigaltstack, signal_stacks_set),
    LED_TO(sigprocmask, signal_masks_sigprocmask),
    LED_TO(sigsuspend, signal_masks_sigsuspend),
    LED_TO(socketpair, asking_socketpair),
#ifdef CROSS_MEMORY_BY_NUMBER
    LED_TO(syscall, cross_memory_syscall),
#endif
    LED_TO(sysinfo, asking_sysinfo),
    LED_TO(uname, asking_uname),
    LED_TO(wait, asking_wait),
    LED_TO(wait3, asking_wait3),
    LED_TO(wait4, asking_wait4),
    LED_TO(waitid, asking_waitid),
    LED_TO(waitpid, asking_waitpid),
    LED(write),
    LED(writev),
};

void retries_lead(void)
{
    guard_calls();
    os_imports_lead(imports, sizeof imports / sizeof *imports);
}
