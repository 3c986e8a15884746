/*
 * Freezing without userfaultfd: the range is made read-only, its readers go
 * on, and a writer waits in a SIGSEGV handler until the range is thawed.
 *
 * The handler serves every freezer of the process through one table, and hands
 * on what is not its own to the handler that was there before.  A fault may be
 * delivered after the thaw that ended its reason, so the first fault of a
 * thread at an address is always retried; the same fault again, with nothing
 * thawed in between, is somebody else's.
 */
#include "freeze.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SLOTS 64
#define RETRIES 64 /* 50 us apart */
#define STAGES ((uint64_t)1 << 18) /* pages: 1 GiB of address space */

static struct slot {
    _Atomic bool used;
    _Atomic uintptr_t start, end;
} slots[SLOTS];

static _Atomic uint32_t thaws;        /* counts up; the word that writers wait on */
static struct sigaction previous;     /* who had SIGSEGV before us */
static pthread_mutex_t install_lock = PTHREAD_MUTEX_INITIALIZER;

/* Of the kind that needs no allocation at its first use, which may be in the handler. */
#define IN_HANDLER static __thread __attribute__((tls_model("initial-exec")))
IN_HANDLER uintptr_t retried_address;
IN_HANDLER uint32_t retried_thaws;
IN_HANDLER bool chaining;

static bool is_frozen(uintptr_t address)
{
    for (int i = 0; i < SLOTS; i++)
        if (atomic_load(&slots[i].used) && address >= atomic_load(&slots[i].start) &&
            address < atomic_load(&slots[i].end))
            return true;
    return false;
}

/* Waits while frozen. false: this fault is not ours. */
static bool handled(uintptr_t address)
{
    uint32_t count = atomic_load(&thaws);
    if (is_frozen(address)) {
        syscall(SYS_futex, &thaws, FUTEX_WAIT_PRIVATE, count, NULL, NULL, 0);
        return true;
    }
    if (retried_address == address && retried_thaws == count)
        return false;
    retried_address = address;
    retried_thaws = count;
    return true;
}

/* Back to the default action: the instruction faults again and ends the process. */
static void give_up(int number)
{
    struct sigaction fatal = {.sa_handler = SIG_DFL};
    sigaction(number, &fatal, NULL);
}

static void chain(int number, siginfo_t *info, void *context)
{
    bool plain = !(previous.sa_flags & SA_SIGINFO);
    if (chaining || (plain && (previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN))) {
        give_up(number);
        return;
    }
    chaining = true;
    if (plain)
        previous.sa_handler(number);
    else
        previous.sa_sigaction(number, info, context);
    chaining = false;
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    int saved = errno;
    bool sent = info->si_code <= 0; /* by kill or raise, not by an access */
    if (sent || info->si_code != SEGV_ACCERR || !handled((uintptr_t)info->si_addr))
        chain(number, info, context);
    errno = saved;
}

/* Somebody may have installed a handler after us: it becomes the one before us. */
static int install(void)
{
    struct sigaction now,
        ours = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    if (sigaction(SIGSEGV, NULL, &now) < 0)
        return -errno;
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_fault)
        return 0;
    pthread_mutex_lock(&install_lock);
    previous = now;
    int error = sigaction(SIGSEGV, &ours, NULL) < 0 ? -errno : 0;
    pthread_mutex_unlock(&install_lock);
    return error;
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

/*
 * Memory that was touched keeps its identity when it is moved: its anon_vma, and its offset.  So
 * the stage slides through a reservation: pieces that are moved one after the other to places one
 * after the other become one mapping.  Another stage of it is always committed ahead, which keeps
 * the anon_vma when the one before is gone.
 */
static int open_stage(struct freezer *fz)
{
    uintptr_t base = (uintptr_t)os_reserve(bytes_of(STAGES));
    if (!base)
        return -ENOMEM;
    int error = os_commit((void *)base, bytes_of(2 * FREEZE_MAX));
    if (error) {
        os_unmap((void *)base, bytes_of(STAGES));
        return error;
    }
    os_unmap((void *)fz->stage, fz->stage_end ? fz->stage_end - fz->stage : bytes_of(FREEZE_MAX));
    fz->stage = base;
    fz->stage_end = base + bytes_of(STAGES);
    return 0;
}

/* Past n pages that were moved away. Where that fails the stage stays, and costs mappings. */
static void slide_stage(struct freezer *fz, uint64_t n)
{
    uintptr_t ahead = fz->stage + bytes_of(2 * FREEZE_MAX);
    if (ahead + bytes_of(n) > fz->stage_end) {
        open_stage(fz);
    } else if (os_commit((void *)ahead, bytes_of(n)) == 0) {
        os_unmap((void *)fz->stage, bytes_of(n));
        fz->stage += bytes_of(n);
    }
}

int signal_init(struct freezer *fz)
{
    bool kernel_mode;
    open_stage(fz); /* without it the small stage stays, and costs mappings */
    if (fz->tracked) {
        fz->uffd = os_uffd_open(OS_UFFD_WP_ASYNC, &kernel_mode);
        if (fz->uffd < 0)
            return fz->uffd;
    }
    fz->slot = take_slot();
    return fz->slot < 0 ? -EMFILE : install();
}

/* The handler stays: taking it away could take away somebody else's. */
void signal_destroy(struct freezer *fz)
{
    if (fz->slot >= 0)
        atomic_store(&slots[fz->slot].used, false);
    fz->slot = -1;
    if (fz->stage_end)
        os_unmap((void *)fz->stage, fz->stage_end - fz->stage);
    fz->stage = fz->stage_end = 0;
}

static int block_writers(struct freezer *fz, uintptr_t address, uint64_t n)
{
    int error = install();
    if (error)
        return error;
    atomic_store(&slots[fz->slot].start, address);
    atomic_store(&slots[fz->slot].end, address + bytes_of(n));
    return os_protect(address, n, false);
}

int64_t signal_freeze(struct freezer *fz, uintptr_t address, uint64_t n, const uint8_t **view)
{
    int error = block_writers(fz, address, n);
    if (error) {
        os_protect(address, n, true); /* a part may have been protected before it failed */
        return error;
    }
    *view = (const uint8_t *)address;
    memset(fz->hole, 0, sizeof fz->hole);
    return (int64_t)n;
}

/*
 * Splitting a mapping can fail for a moment; the writers wait meanwhile.  The same error says that
 * the owner has unmapped a part: then pages go one by one, and those that are gone are passed over.
 */
void signal_restore(uintptr_t address, uint64_t n)
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

/* Memory that could not be registered looks unwritten for ever, which costs merges and no byte. */
static void track_again(struct freezer *fz, uintptr_t address, uint64_t n)
{
    if (fz->tracked)
        os_uffd_register(fz->uffd, address, n, OS_UFFD_WP);
}

int signal_zero(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags)
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
void signal_thaw(struct freezer *fz)
{
    atomic_fetch_add(&thaws, 1);
    atomic_store(&slots[fz->slot].end, 0);
    atomic_fetch_add(&thaws, 1);
    syscall(SYS_futex, &thaws, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* The stage's pages become the region's. */
int signal_unoverlay(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags)
{
    int error = block_writers(fz, address, n);
    if (!error)
        error = freezer_replace(fz, address, fz->stage, n);
    if (error)
        os_protect(address, n, true);
    signal_thaw(fz);
    if (error)
        return error;
    slide_stage(fz, n);
    os_set_vma_flags(address, n, vma_flags);
    track_again(fz, address, n);
    return 0;
}
