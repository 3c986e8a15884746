/*
 * Threads that make a merger lose writes if it can.
 *
 * Some equal buffers of `pages` pages are hammered at once.  Every page is laid
 * out in 512 words of 64 bits:
 *
 *   word   0  32  64  ...  224 | 256 ... 383            | all others
 *          counter of writer w | slot of syscall thread | fixed pattern
 *
 * A writer alone increments its counters, without atomics, and keeps what they
 * must be in memory of its own: a write that got lost shows at the next
 * increment.  It visits the same page of every buffer in turn, so that the
 * pages are equal again, and mergeable, whenever nobody is busy with them.
 * Syscall threads let the kernel write their slots; readers check the
 * pattern, and that no counter ever goes back.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    PAGE = 4096,
    WORDS = PAGE / 8,
    MAX_BUFFERS = 8,
    MAX_WRITERS = 8,
    MAX_SYSCALLS = 4,
    MAX_READERS = 8,
    MAX_WINDOW = 64,
    COUNTER_STRIDE = 32,
    SLOT_FIRST = 256,
    SLOT_WORDS = 32,
    SLOT_END = SLOT_FIRST + MAX_SYSCALLS * SLOT_WORDS,
    SLOT_BYTES = SLOT_WORDS * 8,
    TAIL_BYTES = (WORDS - SLOT_END) * 8,
};

struct torture_options {
    void *buffers[MAX_BUFFERS];
    uint32_t nbuffers;
    uint32_t pages;
    uint32_t writers;
    uint32_t readers;
    uint32_t syscalls;
    uint32_t window;      /* pages that a writer is busy with at a time */
    uint32_t epoch_us;    /* how long it stays with them */
    uint32_t rest_us;     /* how long it pauses then */
    uint32_t efault_ok;   /* a syscall may fail with EFAULT, and is repeated */
    uint64_t seed;
};

struct torture_totals {
    uint64_t increments;
    uint64_t lost;        /* counters found with another value than their owner left */
    uint64_t reads;
    uint64_t wrong;       /* pattern words that are not what was written once */
    uint64_t backwards;   /* counters that were seen to go back */
    uint64_t syscalls;
    uint64_t spoiled;     /* slots whose bytes are not what the kernel was told to write */
    uint64_t efaults;
    uint64_t errors;      /* syscalls that failed in another way */
    uint64_t first_bad;   /* address of the first bad word, 0 if none */
    uint64_t first_want;
    uint64_t first_got;
};

struct torture;

struct worker {
    struct torture *torture;
    pthread_t thread;
    void *(*run)(void *);
    uint32_t index;
    uint64_t random;
    volatile uint64_t progress;
    struct torture_totals totals;
    uint64_t *shadow;
};

struct torture {
    struct torture_options options;
    volatile int stop;
    uint32_t count;
    struct worker workers[MAX_WRITERS + MAX_READERS + MAX_SYSCALLS];
};

static uint64_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdULL;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ULL;
    return x ^ (x >> 33);
}

static uint64_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
    return *state >> 24;
}

static uint64_t now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static uint64_t pattern(const struct torture *t, uint32_t page, uint32_t word)
{
    return mix(t->options.seed ^ ((uint64_t)page << 32 | word));
}

static uint64_t slot_word(const struct torture *t, uint32_t slot, uint32_t page, uint64_t version,
                          uint32_t i)
{
    return mix(t->options.seed ^ version << 40 ^ (uint64_t)(slot + 1) << 36 ^ (uint64_t)page << 8 ^
               i);
}

static volatile uint64_t *word_at(const struct torture *t, uint32_t buffer, uint32_t page,
                                  uint32_t word)
{
    return (volatile uint64_t *)((char *)t->options.buffers[buffer] + (size_t)page * PAGE) + word;
}

static int is_counter(uint32_t word)
{
    return word < SLOT_FIRST && word % COUNTER_STRIDE == 0;
}

static void report(struct worker *w, volatile uint64_t *at, uint64_t want, uint64_t got,
                   uint64_t *counter)
{
    if (!w->totals.first_bad) {
        w->totals.first_bad = (uint64_t)(uintptr_t)at;
        w->totals.first_want = want;
        w->totals.first_got = got;
    }
    ++*counter;
}

static void fill_page(struct torture *t, uint32_t buffer, uint32_t page)
{
    for (uint32_t i = 0; i < WORDS; i++) {
        uint64_t value = pattern(t, page, i);

        if (is_counter(i))
            value = 0;
        else if (i >= SLOT_FIRST && i < SLOT_END)
            value =
                slot_word(t, (i - SLOT_FIRST) / SLOT_WORDS, page, 0, (i - SLOT_FIRST) % SLOT_WORDS);
        *word_at(t, buffer, page, i) = value;
    }
}

/* ---- writers ---------------------------------------------------------------------------- */

static void increment(struct worker *w, uint32_t page)
{
    struct torture *t = w->torture;

    for (uint32_t b = 0; b < t->options.nbuffers; b++) {
        volatile uint64_t *counter = word_at(t, b, page, w->index * COUNTER_STRIDE);
        uint64_t value = *counter;

        if (value != w->shadow[page])
            report(w, counter, w->shadow[page], value, &w->totals.lost);
        *counter = w->shadow[page] + 1;
        w->totals.increments++;
    }
    w->shadow[page]++;
}

static void *writer(void *arg)
{
    struct worker *w = arg;
    const struct torture_options *o = &w->torture->options;
    uint32_t window[MAX_WINDOW];

    while (!w->torture->stop) {
        uint64_t until = now_us() + o->epoch_us;

        for (uint32_t i = 0; i < o->window; i++)
            window[i] = (uint32_t)(next_random(&w->random) % o->pages);
        do {
            for (int i = 0; i < 256; i++)
                increment(w, window[next_random(&w->random) % o->window]);
            w->progress++;
        } while (!w->torture->stop && now_us() < until);
        if (o->rest_us)
            usleep(o->rest_us);
    }
    return NULL;
}

/* ---- readers ---------------------------------------------------------------------------- */

static void check_pattern(struct worker *w, uint32_t buffer, uint32_t page)
{
    for (int i = 0; i < 16; i++) {
        uint32_t word = (uint32_t)(next_random(&w->random) % WORDS);
        uint64_t got;

        if (is_counter(word) || (word >= SLOT_FIRST && word < SLOT_END))
            continue;
        got = *word_at(w->torture, buffer, page, word);
        if (got != pattern(w->torture, page, word))
            report(w, word_at(w->torture, buffer, page, word), pattern(w->torture, page, word), got,
                   &w->totals.wrong);
    }
}

static void check_counters(struct worker *w, uint32_t buffer, uint32_t page)
{
    const struct torture_options *o = &w->torture->options;
    uint64_t *seen = w->shadow + ((size_t)buffer * o->pages + page) * MAX_WRITERS;

    for (uint32_t i = 0; i < o->writers; i++) {
        volatile uint64_t *counter = word_at(w->torture, buffer, page, i * COUNTER_STRIDE);
        uint64_t value = *counter;

        if (value < seen[i])
            report(w, counter, seen[i], value, &w->totals.backwards);
        seen[i] = value;
    }
}

static void *reader(void *arg)
{
    struct worker *w = arg;
    const struct torture_options *o = &w->torture->options;

    while (!w->torture->stop) {
        for (int i = 0; i < 64; i++) {
            uint32_t page = (uint32_t)(next_random(&w->random) % o->pages);
            uint32_t buffer = (uint32_t)(next_random(&w->random) % o->nbuffers);

            check_pattern(w, buffer, page);
            check_counters(w, buffer, page);
            w->totals.reads++;
        }
        w->progress++;
        usleep(50);
    }
    return NULL;
}

/* ---- the kernel as writer and reader ------------------------------------------------------ */

static void *slot_at(struct worker *w, uint32_t buffer, uint32_t page)
{
    return (void *)word_at(w->torture, buffer, page, SLOT_FIRST + w->index * SLOT_WORDS);
}

/* 1: once more, 0: done or given up. */
static int again(struct worker *w, ssize_t rc, size_t length)
{
    if (rc == (ssize_t)length)
        return 0;
    if (rc < 0 && errno == EINTR)
        return 1;
    if (rc < 0 && errno == EFAULT) {
        w->totals.efaults++;
        return w->torture->options.efault_ok ? 1 : (w->totals.errors++, 0);
    }
    if (rc >= 0 && w->torture->options.efault_ok)
        return 1; /* a page in the middle was frozen: the kernel stopped short */
    w->totals.errors++;
    return 0;
}

/* Through a pipe or a socket into a slot. */
static void transfer(struct worker *w, int in, int out, void *target, const uint64_t *bytes)
{
    size_t done = 0;

    if (write(in, bytes, SLOT_BYTES) != SLOT_BYTES)
        w->totals.errors++;
    while (done < SLOT_BYTES) {
        ssize_t rc = w->index == 0 ? read(out, (char *)target + done, SLOT_BYTES - done)
                                   : recv(out, (char *)target + done, SLOT_BYTES - done, 0);
        if (!again(w, rc < 0 ? rc : rc + (ssize_t)done, SLOT_BYTES))
            break;
        done += rc > 0 ? (size_t)rc : 0;
    }
}

/* One preadv into the slots of two buffers. */
static void scatter(struct worker *w, int fd, uint32_t buffer, uint32_t page, const uint64_t *bytes)
{
    uint32_t other = (buffer + 1) % w->torture->options.nbuffers;
    struct iovec iov[2] = {{slot_at(w, buffer, page), SLOT_BYTES},
                           {slot_at(w, other, page), SLOT_BYTES}};

    if (pwrite(fd, bytes, SLOT_BYTES, 0) != SLOT_BYTES ||
        pwrite(fd, bytes, SLOT_BYTES, SLOT_BYTES) != SLOT_BYTES)
        w->totals.errors++;
    while (again(w, preadv(fd, iov, 2, 0), 2 * SLOT_BYTES))
        ;
}

/* The kernel reads the tail of the page, which nobody writes. */
static void gather(struct worker *w, const int *fds, uint32_t buffer, uint32_t page)
{
    uint64_t seen[TAIL_BYTES / 8];
    size_t done = 0;

    while (done < TAIL_BYTES) {
        ssize_t rc = write(fds[0], (const char *)word_at(w->torture, buffer, page, SLOT_END) + done,
                           TAIL_BYTES - done);

        if (!again(w, rc < 0 ? rc : rc + (ssize_t)done, TAIL_BYTES))
            rc = TAIL_BYTES - (ssize_t)done;
        done += rc > 0 ? (size_t)rc : 0;
    }
    if (recv(fds[1], seen, TAIL_BYTES, MSG_WAITALL | MSG_DONTWAIT) != TAIL_BYTES)
        return; /* given up above, and counted there */
    for (uint32_t i = 0; i < TAIL_BYTES / 8; i++)
        if (seen[i] != pattern(w->torture, page, SLOT_END + i))
            report(w, word_at(w->torture, buffer, page, SLOT_END + i),
                   pattern(w->torture, page, SLOT_END + i), seen[i], &w->totals.wrong);
}

static void check_slot(struct worker *w, uint32_t buffer, uint32_t page, uint64_t version)
{
    volatile uint64_t *slot = slot_at(w, buffer, page);

    for (uint32_t i = 0; i < SLOT_WORDS; i++)
        if (slot[i] != slot_word(w->torture, w->index, page, version, i))
            report(w, slot + i, slot_word(w->torture, w->index, page, version, i), slot[i],
                   &w->totals.spoiled);
}

static void exchange(struct worker *w, const int *fds, uint32_t page)
{
    const struct torture_options *o = &w->torture->options;
    uint64_t bytes[SLOT_WORDS];

    for (uint32_t b = 0; b < o->nbuffers; b++)
        check_slot(w, b, page, w->shadow[page]);
    w->shadow[page]++;
    for (uint32_t i = 0; i < SLOT_WORDS; i++)
        bytes[i] = slot_word(w->torture, w->index, page, w->shadow[page], i);
    for (uint32_t b = 0; b < o->nbuffers; b++) {
        if (w->index == 2)
            scatter(w, fds[0], b, page, bytes);
        else
            transfer(w, fds[1], fds[0], slot_at(w, b, page), bytes);
        check_slot(w, b, page, w->shadow[page]);
    }
}

static int open_pair(uint32_t kind, int *fds)
{
    if (kind == 0)
        return pipe2(fds, O_CLOEXEC);
    if (kind == 2) {
        fds[1] = -1;
        fds[0] = memfd_create("torture", MFD_CLOEXEC);
        return fds[0] < 0 ? -1 : 0;
    }
    return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds);
}

/* Thread 0 reads a pipe, 1 receives from a socket, 2 scatters a file, 3 sends the pages themselves. */
static void *syscalls(void *arg)
{
    struct worker *w = arg;
    const struct torture_options *o = &w->torture->options;
    int fds[2];

    if (open_pair(w->index, fds)) {
        w->totals.errors++;
        return NULL;
    }
    while (!w->torture->stop) {
        uint64_t until = now_us() + o->epoch_us;
        uint32_t first = (uint32_t)(next_random(&w->random) % o->pages);

        do {
            uint32_t page = (first + (uint32_t)(next_random(&w->random) % o->window)) % o->pages;

            if (w->index == 3)
                gather(w, fds, (uint32_t)(next_random(&w->random) % o->nbuffers), page);
            else
                exchange(w, fds, page);
            w->totals.syscalls++;
            w->progress++;
        } while (!w->torture->stop && now_us() < until);
        usleep(o->rest_us);
    }
    close(fds[0]);
    if (fds[1] >= 0)
        close(fds[1]);
    return NULL;
}

/* ---- start, stop, verify ------------------------------------------------------------------ */

static int add_worker(struct torture *t, void *(*run)(void *), uint32_t index, size_t shadow_words)
{
    struct worker *w = &t->workers[t->count];

    w->torture = t;
    w->run = run;
    w->index = index;
    w->random = mix(t->options.seed + t->count + 1);
    w->shadow = calloc(shadow_words, sizeof *w->shadow);
    if (!w->shadow)
        return -ENOMEM;
    t->count++;
    return 0;
}

static int add_workers(struct torture *t)
{
    const struct torture_options *o = &t->options;
    int rc = 0;

    for (uint32_t i = 0; !rc && i < o->writers; i++)
        rc = add_worker(t, writer, i, o->pages);
    for (uint32_t i = 0; !rc && i < o->syscalls; i++)
        rc = add_worker(t, syscalls, i, o->pages);
    for (uint32_t i = 0; !rc && i < o->readers; i++)
        rc = add_worker(t, reader, i, (size_t)o->nbuffers * o->pages * MAX_WRITERS);
    return rc;
}

/* Fills the buffers; threads start with torture_go. NULL: out of range or out of memory. */
struct torture *torture_new(const struct torture_options *options)
{
    struct torture *t;

    if (options->nbuffers > MAX_BUFFERS || options->writers > MAX_WRITERS ||
        options->readers > MAX_READERS || options->syscalls > MAX_SYSCALLS ||
        options->window > MAX_WINDOW || !options->window || !options->pages)
        return NULL;
    t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    t->options = *options;
    if (add_workers(t)) {
        free(t);
        return NULL;
    }
    for (uint32_t b = 0; b < options->nbuffers; b++)
        for (uint32_t p = 0; p < options->pages; p++)
            fill_page(t, b, p);
    return t;
}

int torture_go(struct torture *t)
{
    for (uint32_t i = 0; i < t->count; i++) {
        int rc = pthread_create(&t->workers[i].thread, NULL, t->workers[i].run, &t->workers[i]);

        if (rc)
            return -rc;
    }
    return 0;
}

uint32_t torture_threads(const struct torture *t)
{
    return t->count;
}

void torture_progress(const struct torture *t, uint64_t *out)
{
    for (uint32_t i = 0; i < t->count; i++)
        out[i] = t->workers[i].progress;
}

/* The progress after half of the time, and after all of it. */
void torture_watch(const struct torture *t, unsigned microseconds, uint64_t *half, uint64_t *end)
{
    usleep(microseconds / 2);
    torture_progress(t, half);
    usleep(microseconds / 2);
    torture_progress(t, end);
}

/* 0, or the number of threads that did not come back in time (they are left alone). */
int torture_stop(struct torture *t, double seconds)
{
    struct timespec deadline;
    int stuck = 0;

    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += (time_t)seconds;
    t->stop = 1;
    for (uint32_t i = 0; i < t->count; i++)
        if (pthread_timedjoin_np(t->workers[i].thread, NULL, &deadline))
            stuck++;
    return stuck;
}

static void add_totals(struct torture_totals *sum, const struct torture_totals *one)
{
    sum->increments += one->increments;
    sum->lost += one->lost;
    sum->reads += one->reads;
    sum->wrong += one->wrong;
    sum->backwards += one->backwards;
    sum->syscalls += one->syscalls;
    sum->spoiled += one->spoiled;
    sum->efaults += one->efaults;
    sum->errors += one->errors;
    if (!sum->first_bad) {
        sum->first_bad = one->first_bad;
        sum->first_want = one->first_want;
        sum->first_got = one->first_got;
    }
}

void torture_sum(const struct torture *t, struct torture_totals *out)
{
    memset(out, 0, sizeof *out);
    for (uint32_t i = 0; i < t->count; i++)
        add_totals(out, &t->workers[i].totals);
}

static uint64_t expected_word(const struct torture *t, uint32_t page, uint32_t word)
{
    const struct torture_options *o = &t->options;
    uint32_t writer_index = word / COUNTER_STRIDE;
    uint32_t slot = (word - SLOT_FIRST) / SLOT_WORDS;

    if (is_counter(word))
        return writer_index < o->writers ? t->workers[writer_index].shadow[page] : 0;
    if (word >= SLOT_FIRST && word < SLOT_END)
        return slot_word(t, slot, page,
                         slot < o->syscalls && slot < 3 ? t->workers[o->writers + slot].shadow[page]
                                                        : 0,
                         (word - SLOT_FIRST) % SLOT_WORDS);
    return pattern(t, page, word);
}

/* How many words of the buffers are not what they must be.  Call it when no thread runs. */
uint64_t torture_verify(const struct torture *t)
{
    uint64_t bad = 0;

    for (uint32_t b = 0; b < t->options.nbuffers; b++)
        for (uint32_t p = 0; p < t->options.pages; p++)
            for (uint32_t i = 0; i < WORDS; i++)
                bad += *word_at(t, b, p, i) != expected_word(t, p, i);
    return bad;
}

void torture_free(struct torture *t)
{
    for (uint32_t i = 0; i < t->count; i++)
        free(t->workers[i].shadow);
    free(t);
}

/* ---- pages under direct I/O ---------------------------------------------------------------- */

struct direct_io {
    int fd; /* opened O_DIRECT; block k of 4096 bytes is filled with mix(seed, k, word) */
    uint32_t blocks;
    uint32_t pages;
    void *buffers[2];
    uint64_t seed;
    volatile int stop;
    uint64_t reads;
    uint64_t spoiled;
    uint64_t efaults;
    uint64_t errors;
};

static int block_is(const struct direct_io *d, const void *page, uint32_t block)
{
    const volatile uint64_t *words = page;

    for (uint32_t i = 0; i < WORDS; i++)
        if (words[i] != mix(d->seed ^ ((uint64_t)block << 32 | i)))
            return 0;
    return 1;
}

void direct_block(uint64_t seed, uint32_t block, uint64_t *out)
{
    for (uint32_t i = 0; i < WORDS; i++)
        out[i] = mix(seed ^ ((uint64_t)block << 32 | i));
}

static void direct_read(struct direct_io *d, void *page, uint32_t block)
{
    while (!d->stop) {
        ssize_t rc = pread(d->fd, page, PAGE, (off_t)block * PAGE);

        if (rc == PAGE)
            break;
        if (rc < 0 && errno != EFAULT) {
            d->errors++;
            return;
        }
        d->efaults++;
    }
    if (!d->stop && !block_is(d, page, block))
        d->spoiled++;
}

/* Reads random blocks into random pages of both buffers until told to stop. */
void direct_run(struct direct_io *d)
{
    uint64_t random = mix(d->seed);

    while (!d->stop) {
        uint32_t page = (uint32_t)(next_random(&random) % d->pages);
        uint32_t block = (uint32_t)(next_random(&random) % d->blocks);

        direct_read(d, (char *)d->buffers[0] + (size_t)page * PAGE, block);
        direct_read(d, (char *)d->buffers[1] + (size_t)page * PAGE, block);
        d->reads += 2;
    }
}

/* ---- one word, hammered ---------------------------------------------------------------------- */

struct hammer {
    volatile uint64_t *at;
    volatile int stop;
    uint64_t writes;
};

/* Writes the same bytes over and over: the page stays mergeable, and every freeze meets a writer. */
void hammer_run(struct hammer *h)
{
    uint64_t value = *h->at;

    while (!h->stop) {
        for (int i = 0; i < 64; i++)
            *h->at = value;
        h->writes += 64;
    }
}

/* ---- fork from C -------------------------------------------------------------------------- */

struct fork_job {
    char *const *buffers;
    const char *const *wanted; /* what each buffer must hold; memory that nobody merges */
    uint32_t nbuffers;
    size_t length;
    uint32_t forks;
    int bad_exits;
    int hung;
};

/* In the child: bytes, private writes, bytes again.  Only async-signal-safe calls. */
static int child_verify(const struct fork_job *job)
{
    for (uint32_t b = 0; b < job->nbuffers; b++)
        if (memcmp(job->buffers[b], job->wanted[b], job->length))
            return 1;
    for (uint32_t b = 0; b < job->nbuffers; b++)
        for (size_t at = 0; at < job->length; at += PAGE)
            job->buffers[b][at + 8 * b] ^= 0x5a;
    for (uint32_t b = 0; b < job->nbuffers; b++)
        for (size_t at = 0; at < job->length; at += PAGE) {
            job->buffers[b][at + 8 * b] ^= 0x5a;
            if (memcmp(job->buffers[b] + at, job->wanted[b] + at, PAGE))
                return 2;
        }
    return 0;
}

static void await_child(struct fork_job *job, pid_t pid)
{
    int status = 0;

    for (int i = 0; i < 20000; i++) {
        if (waitpid(pid, &status, WNOHANG) == pid) {
            job->bad_exits += status != 0;
            return;
        }
        usleep(1000);
    }
    job->hung++;
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
}

static void *fork_thread(void *arg)
{
    struct fork_job *job = arg;

    for (uint32_t i = 0; i < job->forks && !job->bad_exits && !job->hung; i++) {
        pid_t pid = fork();

        if (pid == 0)
            _exit(child_verify(job));
        if (pid < 0)
            job->bad_exits++;
        else
            await_child(job, pid);
    }
    return NULL;
}

/* Forks from a thread that the interpreter never saw. */
int fork_from_thread(struct fork_job *job)
{
    pthread_t thread;
    int rc = pthread_create(&thread, NULL, fork_thread, job);

    if (rc)
        return -rc;
    pthread_join(thread, NULL);
    return 0;
}

/* ---- a merger that loses writes ------------------------------------------------------------- */

/*
 * Merges equal pages of two buffers without freezing them: what is written
 * between the comparison and the mapping is gone.  The torture has to notice.
 */
uint64_t broken_merger(char *a, char *b, uint32_t pages, volatile int *stop)
{
    int fd = memfd_create("broken", MFD_CLOEXEC);
    uint64_t merged = 0;

    if (fd < 0 || ftruncate(fd, (off_t)pages * PAGE))
        return 0;
    while (!*stop)
        for (uint32_t p = 0; p < pages && !*stop; p++) {
            off_t at = (off_t)p * PAGE;

            if (memcmp(a + at, b + at, PAGE) || pwrite(fd, a + at, PAGE, at) != PAGE)
                continue;
            mmap(a + at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, at);
            mmap(b + at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, at);
            merged++;
        }
    close(fd);
    return merged;
}
