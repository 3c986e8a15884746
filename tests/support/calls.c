/*
 * One system call of a kind, as a library in C makes it: what it returned, or -errno.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* As sqlite keeps its calls: what the linker has to store in a variable. */
static ssize_t (*volatile stored)(int, void *, size_t) = read;

#ifdef __GLIBC__
/* What gcc makes of read() where it knows how long the buffer is. */
ssize_t __read_chk(int fd, void *buffer, size_t n, size_t room);
#endif

/* What was read into the first buffer was not cut, and the second begins in the middle of a page. */
static long behind_header(int fd, char *at, size_t n)
{
    char header[100];
    struct iovec parts[] = {{header, sizeof header}, {at + sizeof header, n - sizeof header}};
    long got = readv(fd, parts, 2);

    memcpy(at, header, sizeof header);
    return got;
}

static long by_list(const char *kind, int fd, char *at, size_t n)
{
    struct iovec parts[] = {{at, n / 4}, {at + n / 4, n - n / 4}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

    if (strcmp(kind, "readv behind a header") == 0)
        return behind_header(fd, at, n);
    if (strcmp(kind, "readv") == 0)
        return readv(fd, parts, 2);
    if (strcmp(kind, "preadv") == 0)
        return preadv(fd, parts, 2, 0);
    if (strcmp(kind, "preadv2") == 0)
        return preadv2(fd, parts, 2, -1, 0);
    if (strcmp(kind, "recvmsg") == 0)
        return recvmsg(fd, &message, 0);
    errno = EINVAL;
    return -1;
}

/* In elements of 3 bytes and the rest: what was read of an element is not to be lost. */
static long by_stream(int fd, char *at, size_t n)
{
    FILE *file = fdopen(dup(fd), "r");
    long got;

    setvbuf(file, NULL, _IONBF, 0);
    got = 3 * fread(at, 3, n / 3, file);
    got += fread(at + got, 1, n - got, file);
    got = ferror(file) ? -1 : got;
    fclose(file);
    return got;
}

/* In whole pages, as some processors have that much to save. */
static long set_stack(char *at)
{
    stack_t stack = {.ss_sp = at, .ss_size = 4 * 4096}, none = {.ss_flags = SS_DISABLE};
    int got = sigaltstack(&stack, NULL);

    return got < 0 ? got : sigaltstack(&none, NULL);
}

static long events(int fd, char *at)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 17};
    int epoll = epoll_create1(EPOLL_CLOEXEC), got;

    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    got = epoll_wait(epoll, (struct epoll_event *)at, 1, 10000);
    close(epoll);
    return got;
}

static long make(const char *kind, int fd, char *at, size_t n)
{
    if (strcmp(kind, "read") == 0)
        return read(fd, at, n);
    if (strcmp(kind, "stored read") == 0)
        return stored(fd, at, n);
#ifdef __GLIBC__
    if (strcmp(kind, "checked read") == 0)
        return __read_chk(fd, at, n, n);
#endif
    if (strcmp(kind, "pread") == 0)
        return pread(fd, at, n, 0);
    if (strcmp(kind, "recv") == 0)
        return recv(fd, at, n, 0);
    if (strcmp(kind, "recvfrom") == 0)
        return recvfrom(fd, at, n, 0, NULL, NULL);
    if (strcmp(kind, "getrandom") == 0)
        return getrandom(at, n, 0);
    if (strcmp(kind, "poll") == 0)
        return poll((struct pollfd *)at, 1, 10000);
    if (strcmp(kind, "sigaltstack") == 0)
        return set_stack(at);
    if (strcmp(kind, "epoll_wait") == 0)
        return events(fd, at);
    if (strcmp(kind, "fread") == 0)
        return by_stream(fd, at, n);
    return by_list(kind, fd, at, n);
}

/* The error of a call before stays in errno when one works out. */
long calls_make(const char *kind, int fd, char *at, size_t n)
{
    long got;

    errno = EXDEV;
    got = make(kind, fd, at, n);
    if (got < 0)
        return -errno;
    return errno == EXDEV || strcmp(kind, "fread") == 0 ? got : -ENOTRECOVERABLE;
}
