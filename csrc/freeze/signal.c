/*
 * Freezing without userfaultfd: the range is made read-only, its readers go
 * on, and a writer waits in a SIGSEGV handler until the range is thawed.
 *
 * The handler (os/handlers.c) serves every freezer of the process through one
 * table.  A fault may be delivered after the thaw that ended its reason, so the
 * first fault of a thread at an address is always retried; the same fault
 * again, with nothing thawed in between, is somebody else's.
 *
 * While a handler of the program's runs, SIGSEGV is blocked as a rule, and the
 * kernel kills a thread that faults then.  Such a thread is a guest: it is
 * noted after it has blocked the signal, and waits until nothing is frozen;
 * nothing is frozen while there is one.  Whoever left the handler by siglongjmp
 * was not seen to leave, but blocks the signal no more.
 */
#include "freeze/signal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/pages.h"
#include "freeze/borrow.h"
#include "freeze/ops.h"
#include "freeze/owner.h"
#include "freeze/replace.h"
#include "freeze/shadow.h"
#include "freeze/stage.h"
#include "os/apart.h"
#include "os/clock.h"
#include "os/handlers.h"
#include "os/map.h"
#include "os/uffd.h"

#define SLOTS 64
#define RETRIES 64 /* 50 us apart */

static struct slot {
    _Atomic bool used;
    _Atomic uintptr_t start, end;
} slots[SLOTS];

static _Atomic uint32_t thaws; /* counts up; the word that writers wait on */

/* Thread, and how many times it has come: a guest that comes again is not taken for one that left. */
#define GUESTS 64
static _Atomic uint64_t guests[GUESTS];
static _Atomic uint32_t visits;

/* Of the kind that needs no allocation at its first use, which may be in the handler. */
#define IN_HANDLER static __thread __attribute__((tls_model("initial-exec")))
IN_HANDLER uintptr_t retried_address;
IN_HANDLER uint32_t retried_thaws;
IN_HANDLER bool freezing; /* this thread: it does not wait for itself */

static bool is_frozen(uintptr_t start, uintptr_t end)
{
    for (int i = 0; i < SLOTS; i++)
        if (atomic_load(&slots[i].used) && end > atomic_load(&slots[i].start) &&
            start < atomic_load(&slots[i].end))
            return true;
    return false;
}

static void wait_for_thaw(uint32_t count)
{
    syscall(SYS_futex, &thaws, FUTEX_WAIT_PRIVATE, count, NULL, NULL, 0);
}

static bool claims(int number, const siginfo_t *info)
{
    uintptr_t address = (uintptr_t)info->si_addr;
    uint32_t count = atomic_load(&thaws);
    if (number != SIGSEGV || info->si_code != SEGV_ACCERR)
        return false;
    if (is_frozen(address, address + 1)) {
        wait_for_thaw(count);
        return true;
    }
    if (retried_address == address && retried_thaws == count)
        return false;
    retried_address = address;
    retried_thaws = count;
    return true;
}

/* ---- guests ---- */

#define TASKS "/proc/self/task/"

static bool is_alive(uint32_t thread)
{
    return syscall(SYS_tgkill, getpid(), thread, 0) == 0 || errno != ESRCH;
}

/* Nobody can tell: it does.  /proc may be out of sight, and is reached by tasks_fd then, or -1. */
static bool blocks_sigsegv(int tasks_fd, uint32_t thread, bool *crowded)
{
    char path[48], text[4096];
    snprintf(path, sizeof path, TASKS "%u/status", thread);
    const char *at = tasks_fd < 0 ? path : path + strlen(TASKS);
    int fd = openat(tasks_fd, at, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        *crowded |= os_is_crowded(-errno);
        return is_alive(thread);
    }
    ssize_t got = read(fd, text, sizeof text - 1);
    int error = errno;
    close(fd);
    text[got > 0 ? got : 0] = 0;
    const char *mask = strstr(text, "SigBlk:");
    if (!mask)
        return got >= 0 || error != ESRCH;
    return strtoull(mask + strlen("SigBlk:"), NULL, 16) >> (SIGSEGV - 1) & 1;
}

static bool has_guests(int tasks_fd, bool *crowded)
{
    bool some = false;
    for (int i = 0; i < GUESTS; i++) {
        uint64_t guest = atomic_load(&guests[i]);
        if (guest && (blocks_sigsegv(tasks_fd, (uint32_t)guest, crowded) ||
                      !atomic_compare_exchange_strong(&guests[i], &guest, 0)))
            some = true;
    }
    return some;
}

struct look {
    int tasks_fd;
    bool guests, crowded;
};

static void look_for_guests(void *data)
{
    struct look *look = data;
    look->guests = has_guests(look->tasks_fd, &look->crowded);
}

static bool guests_are_here(const struct freezer *fz)
{
    struct look look = {.tasks_fd = fz->tasks_fd};
    look_for_guests(&look);
    if (look.crowded)
        os_apart(look_for_guests, &look);
    return look.guests;
}

/* The entry of this thread, or a free one; NULL: there is none. */
static _Atomic uint64_t *guest_entry(uint32_t thread)
{
    for (int i = 0; i < GUESTS; i++)
        if ((uint32_t)atomic_load(&guests[i]) == thread)
            return &guests[i];
    for (int i = 0; i < GUESTS; i++) {
        uint64_t nobody = 0;
        if (atomic_compare_exchange_strong(&guests[i], &nobody, thread))
            return &guests[i];
    }
    return NULL;
}

static void allow_sigsegv(void)
{
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, SIGSEGV);
    pthread_sigmask(SIG_UNBLOCK, &one, NULL);
}

/* As long as the entry is not taken by another thread meanwhile: this one's had been given up. */
static bool note_visit(_Atomic uint64_t *entry, uint32_t thread, bool *is_new)
{
    uint64_t known = atomic_load(entry);
    uint64_t visit = (uint64_t)(atomic_fetch_add(&visits, 1) + 1) << 32;
    *is_new = known == thread;
    return (uint32_t)known == thread &&
           atomic_compare_exchange_strong(entry, &known, visit | thread);
}

/*
 * A handler of the program's is about to run with SIGSEGV blocked: from now on nothing is frozen.
 * true: leave_guest() is to be called when it returns.
 */
static bool enter_guest(void)
{
    uint32_t thread = (uint32_t)syscall(SYS_gettid), count;
    _Atomic uint64_t *entry;
    bool is_new = true, crowded = false;
    do {
        entry = guest_entry(thread);
        if (!entry && has_guests(-1, &crowded)) /* which has let go of those that left */
            entry = guest_entry(thread);
    } while (entry && !note_visit(entry, thread, &is_new));
    if (!entry) { /* then it may write to frozen pages like any other thread */
        allow_sigsegv();
        return false;
    }
    while (!freezing && (count = atomic_load(&thaws), is_frozen(0, UINTPTR_MAX)))
        wait_for_thaw(count);
    return is_new;
}

static void leave_guest(void)
{
    uint32_t thread = (uint32_t)syscall(SYS_gettid);
    for (int i = 0; i < GUESTS; i++)
        if ((uint32_t)atomic_load(&guests[i]) == thread)
            atomic_store(&guests[i], 0);
}

static const struct fault_claim claim = {claims, enter_guest, leave_guest};

void signal_note_guests(void)
{
    handlers_ask(FAULT_OF_FREEZING, &claim);
}

static int take_slot(void)
{
    for (int i = 0; i < SLOTS; i++) {
        bool free = false;
        if (atomic_compare_exchange_strong(&slots[i].used, &free, true))
            return i;
    }
    return -1;
}

static int signal_init(struct freezer *fz)
{
    bool kernel_mode;
    stage_open(fz); /* without it the small stage stays, and costs mappings */
    if (fz->tracked) {
        fz->uffd = os_uffd_open(OS_UFFD_WP_ASYNC, &kernel_mode);
        if (fz->uffd < 0)
            return fz->uffd;
    }
    fz->slot = take_slot();
    return fz->slot < 0 ? -EMFILE : handlers_install();
}

/* The handler stays: taking it away could take away somebody else's. */
static void signal_stop(struct freezer *fz)
{
    if (fz->slot >= 0)
        atomic_store(&slots[fz->slot].used, false);
    fz->slot = -1;
}

static int block_writers(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int error = handlers_install();
    if (error)
        return error;
    freezing = true;
    atomic_store(&slots[fz->slot].start, address);
    atomic_store(&slots[fz->slot].end, address + bytes_of(n));
    return guests_are_here(fz) ? -EBUSY : os_protect(address, n, false);
}

/*
 * Splitting a mapping can fail for a moment; the writers wait meanwhile.  The same error says that
 * the owner has unmapped a part: then pages go one by one, and those that are gone are passed over.
 */
static void let_write(uintptr_t address, uint64_t n)
{
    for (int tries = 0; n; tries++) {
        uint64_t part = tries < RETRIES ? n : 1;
        if (os_protect(address, part, true) == -ENOMEM && (part > 1 || os_is_mapped(address))) {
            os_sleep_us(50);
        } else {
            address += bytes_of(part);
            n -= part;
        }
    }
}

/* What its owner has protected, or others have mapped there, keeps its rights. */
static void signal_restore(struct freezer *fz, uintptr_t address, uint64_t first, uint64_t n)
{
    bool ours;
    address += bytes_of(first);
    for (uint64_t part; n; n -= part, address += bytes_of(part)) {
        part = owner_left_read_only(fz, address, n, &ours);
        if (ours)
            let_write(address, part);
    }
}

static int64_t signal_freeze(struct freezer *fz, uintptr_t address, uint64_t n,
                             const uint8_t **view)
{
    int error = block_writers(fz, address, n);
    if (error) {
        signal_restore(fz, address, 0, n); /* a part may have been protected before it failed */
        return error;
    }
    *view = (const uint8_t *)address;
    memset(fz->hole, 0, sizeof fz->hole);
    return (int64_t)n;
}

/* Memory that could not be registered looks unwritten for ever, which costs merges and no byte. */
static void track_again(struct freezer *fz, uintptr_t address, uint64_t n)
{
    if (fz->tracked)
        os_uffd_register(fz->uffd, address, n, OS_UFFD_WP);
}

static int signal_zero(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags)
{
    int error = os_map_anonymous(address, n, vma_flags);
    if (!error)
        track_again(fz, address, n);
    return error;
}

/*
 * The count moves on both sides of the change: a handler that reads it before
 * and finds nothing frozen must not take its fault for one that was retried.
 */
static void signal_thaw(struct freezer *fz, uintptr_t address, uint64_t n)
{
    (void)address, (void)n;
    freezing = false;
    atomic_fetch_add(&thaws, 1);
    atomic_store(&slots[fz->slot].end, 0);
    atomic_fetch_add(&thaws, 1);
    syscall(SYS_futex, &thaws, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Read-only, so that what is being filled is a mapping too short to get a huge page. */
static uintptr_t signal_shadow(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags)
{
    uintptr_t shadow = shadow_by_borrowing(fz, address, n, vma_flags);
    if (!shadow)
        shadow = shadow_afresh(address, n, vma_flags);
    if (shadow)
        os_protect(shadow, n + 1, false);
    return shadow;
}

/* The pages at from become the region's, with the bytes that the overlays show. */
static int replace_by(struct freezer *fz, uintptr_t address, uintptr_t from, uint64_t n)
{
    int error = os_populate(from, n, true);
    if (error)
        return error;
    error = block_writers(fz, address, n);
    if (!error)
        error = freezer_still(fz, address, n);
    if (!error)
        error = freezer_copy(from, address, n);
    if (!error)
        error = freezer_replace(fz, address, from, n);
    if (error)
        os_protect(address, n, true);
    signal_thaw(fz, address, n);
    return error;
}

/*
 * Whoever looked at all of our memory may have filled the shadow, hence it is emptied.  A page more
 * than is moved can be written meanwhile: a mapping that is moved whole loses its identity, and
 * would remain one of its own when it is read-only again.
 */
static int from_shadow(struct freezer *fz, uintptr_t address, uintptr_t shadow, uint64_t n)
{
    int error = os_protect(shadow, n + 1, true);
    if (!error)
        error = os_drop(shadow, n);
    if (!error)
        error = replace_by(fz, address, shadow, n);
    os_drop(shadow, n);
    os_protect(shadow, n + 1, false);
    return error;
}

static int from_stage(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags)
{
    int error = replace_by(fz, address, fz->stage, n);
    if (error)
        return error;
    stage_slide(fz, n);
    os_set_vma_flags(address, n, vma_flags);
    return 0;
}

/* The stage's pages cost mappings: they have an identity of their own. */
static int signal_unoverlay(struct freezer *fz, uintptr_t address, uint64_t n, uintptr_t shadow,
                            int vma_flags)
{
    int error = shadow ? from_shadow(fz, address, shadow, n) : -ENOENT;
    if (error && error != -EBUSY)
        error = from_stage(fz, address, n, vma_flags);
    if (!error)
        track_again(fz, address, n);
    return error;
}

static void signal_rebuild(struct freezer *fz, uintptr_t address, uintptr_t from, uint64_t n)
{
    (void)fz;
    while (os_commit((void *)address, bytes_of(n)) < 0)
        os_sleep_us(50);
    memcpy((void *)address, (const void *)from, bytes_of(n));
}

static void signal_abandon(struct freezer *fz)
{
    signal_stop(fz);
    stage_close(fz);
}

const struct freezer_ops freeze_by_signal = {
    .read_only = true,
    .fills_holes = true,
    .init = signal_init,
    .stop = signal_stop,
    .abandon = signal_abandon,
    .freeze = signal_freeze,
    .restore = signal_restore,
    .zero = signal_zero,
    .thaw = signal_thaw,
    .shadow = signal_shadow,
    .unoverlay = signal_unoverlay,
    .rebuild = signal_rebuild,
};
