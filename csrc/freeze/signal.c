/*
 * Freezing without userfaultfd: the range is made read-only, its readers go
 * on, and a writer waits in a SIGSEGV handler until the range is thawed.
 *
 * The handler (os/handlers.c) serves every freezer of the process through one
 * table.  A fault may be delivered after the thaw that ended its reason, so the
 * first fault of a thread at an address is always retried; the same fault
 * again, with nothing thawed in between, is somebody else's.
 *
 * While a SIGSEGV handler of the program's runs, the signal is blocked as a
 * rule, and the kernel kills a thread that faults with it blocked.  Such a
 * thread is called a guest.  It is noted once it has blocked the signal, and
 * waits until nothing is frozen; nothing is frozen as long as there is a guest.
 * A thread that left its handler by siglongjmp was not seen to leave: it is no
 * guest any more when /proc shows that it does not block the signal.
 *
 * Handlers of other signals get SIGSEGV taken out of what they block, and so do
 * threads that libraries have block all signals (freeze/signal_masks.h).
 */
#include "freeze/signal.h"

#include <errno.h>
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
#include "os/tasks.h"
#include "os/uffd.h"

#define SLOTS 64   /* freezers of this kind in one process; further ones fail with EMFILE */
#define RETRIES 64 /* how often let_write() tries the whole range, 50 us apart: some 3 ms */

static struct slot {
    _Atomic bool used;
    _Atomic uintptr_t start, end;
} slots[SLOTS];

static _Atomic uint32_t thaws; /* counts up; the futex word that writers wait on */

/*
 * Each entry has the thread's id in its low half and the number of its visit in its high half; 0 is
 * a free one.  The number keeps has_guests() from clearing the entry of a thread that left and has
 * come again since it looked.
 */
#define GUESTS 64
static _Atomic uint64_t guests[GUESTS];
static _Atomic uint32_t visits;

/*
 * Thread-local variables are allocated at their first use, which may be in the handler, where
 * nothing may be allocated.  Those of the initial-exec model exist from the thread's start.
 */
#define IN_HANDLER static __thread __attribute__((tls_model("initial-exec")))
IN_HANDLER uintptr_t retried_address;
IN_HANDLER uint32_t retried_thaws;
IN_HANDLER bool freezing; /* this thread holds a freeze, whose end it must not wait for */

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
    /*
     * The freeze that this fault came from may have ended since the count was read above.  What is
     * read now counts its thaw, and so differs from what an earlier fault of this thread noted.
     */
    count = atomic_load(&thaws);
    if (retried_address == address && retried_thaws == count)
        return false;
    retried_address = address;
    retried_thaws = count;
    return true;
}

/* ---- guests ---- */

/*
 * Does the thread block SIGSEGV?  true where nobody can tell.  *crowded is set if there was no free
 * descriptor.
 */
static bool blocks_sigsegv(int tasks_fd, uint32_t thread, bool *crowded)
{
    char name[16], text[4096];
    snprintf(name, sizeof name, "%u", thread);
    int got = os_task_tell(tasks_fd, name, "status", text, sizeof text);
    const char *mask = got > 0 ? strstr(text, "SigBlk:") : NULL;
    *crowded |= os_is_crowded(got);
    if (!mask)
        return os_task_lives(thread);
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
    bool guests;
};

static int look_for_guests(void *data, bool apart)
{
    struct look *look = data;
    bool crowded = false;
    (void)apart;
    look->guests = has_guests(look->tasks_fd, &crowded);
    return crowded ? -EMFILE : 0;
}

static bool guests_are_here(const struct freezer *fz)
{
    struct look look = {.tasks_fd = fz->tasks_fd};
    os_ask(look_for_guests, &look);
    return look.guests;
}

/* The entry of this thread, or a free one, which it takes; NULL if all are taken. */
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

/*
 * Numbers this visit in the thread's entry.  false: another thread has taken the entry meanwhile,
 * since has_guests() had given up an old visit of this one.
 */
static bool note_visit(_Atomic uint64_t *entry, uint32_t thread, bool *is_new)
{
    uint64_t known = atomic_load(entry);
    uint64_t visit = (uint64_t)(atomic_fetch_add(&visits, 1) + 1) << 32;
    *is_new = known == thread;
    return (uint32_t)known == thread &&
           atomic_compare_exchange_strong(entry, &known, visit | thread);
}

/*
 * A handler of the program's is about to run with SIGSEGV blocked: waits until nothing is frozen,
 * and keeps it so.  true: leave_guest() is to be called when the handler returns.
 */
static bool enter_guest(void)
{
    uint32_t thread = (uint32_t)syscall(SYS_gettid), count;
    _Atomic uint64_t *entry;
    bool is_new = true, crowded = false;
    do {
        entry = guest_entry(thread);
        if (!entry && has_guests(-1, &crowded)) /* it has freed the entries of those that left */
            entry = guest_entry(thread);
    } while (entry && !note_visit(entry, thread, &is_new));
    if (!entry) { /* unblocked, the signal lets it wait at frozen pages like any other thread */
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

bool signal_is_in_use(void)
{
    for (int i = 0; i < SLOTS; i++)
        if (atomic_load(&slots[i].used))
            return true;
    return false;
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
    stage_open(fz); /* if it fails, the stage that does not slide stays, and costs mappings */
    if (fz->tracked) {
        fz->uffd = os_uffd_open(OS_UFFD_WP_ASYNC);
        if (fz->uffd < 0)
            return fz->uffd;
    }
    fz->slot = take_slot();
    return fz->slot < 0 ? -EMFILE : handlers_install();
}

/* The signal handler stays installed: others may have chained theirs to it since. */
static void signal_stop(struct freezer *fz)
{
    if (fz->slot >= 0)
        atomic_store(&slots[fz->slot].used, false);
    fz->slot = -1;
}

/*
 * Memory, or overlays, of the region's become read-only.  Whose they are is asked last: what others have
 * mapped there by then keeps its rights.
 */
static int block_writers(struct freezer *fz, uintptr_t address, uint64_t n, bool overlays)
{
    fz->made_read_only = false;
    int error = handlers_install();
    if (error)
        return error;
    handlers_let_faults_in();
    freezing = true;
    atomic_store(&slots[fz->slot].start, address);
    atomic_store(&slots[fz->slot].end, address + bytes_of(n));
    if (guests_are_here(fz))
        return -EBUSY;
    fz->made_read_only =
        overlays ? owner_may_write_overlays(fz, address, n) : owner_may_write(fz, address, n);
    return fz->made_read_only ? os_protect(address, n, false) : -ESTALE;
}

/*
 * Makes a range writable again.  ENOMEM may mean that there is no mapping left for a split, which
 * passes; the writers wait meanwhile.  It may also mean that the owner has unmapped a part: so
 * after RETRIES the pages are taken one by one, and those that are not mapped are passed over.
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

/*
 * Only memory that was made read-only, and still is, becomes writable: other rights are somebody else's
 * choice.
 */
static void give_back(struct freezer *fz, uintptr_t address, uint64_t n, bool overlays)
{
    bool ours;
    if (!fz->made_read_only)
        return;
    for (uint64_t part; n; n -= part, address += bytes_of(part)) {
        part = owner_left_read_only(fz, address, n, overlays, &ours);
        if (ours)
            let_write(address, part);
    }
}

/*
 * Nothing is done here.  To make a part of the range writable would split its mapping, which takes
 * mappings that there may not be: so thaw makes all writable that has not become an overlay.
 */
static void signal_restore(struct freezer *fz, uintptr_t address, uint64_t first, uint64_t n)
{
    (void)fz, (void)address, (void)first, (void)n;
}

static int64_t signal_freeze(struct freezer *fz, uintptr_t address, uint64_t n,
                             const uint8_t **view)
{
    int error = block_writers(fz, address, n, false);
    *view = (const uint8_t *)address;
    memset(fz->hole, 0, sizeof fz->hole);
    return error ? error : (int64_t)n; /* mprotect may have protected a part and then failed */
}

/* If the registration fails the memory looks unwritten for ever, which costs merges and no byte. */
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
 * The count moves before the range stops being frozen: a handler that begins
 * after that and finds nothing frozen sees another count than at an earlier
 * fault of its thread, and so does not take this fault for one that came again.
 * It moves once more afterwards: a handler that is about to wait for the count
 * it has read finds another one in the futex word, and does not wait.
 */
static void let_writers_in(const struct freezer *fz)
{
    freezing = false;
    atomic_fetch_add(&thaws, 1);
    atomic_store(&slots[fz->slot].end, 0);
    atomic_fetch_add(&thaws, 1);
    syscall(SYS_futex, &thaws, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* What lies between overlays is a mapping of its own, which needs no split. */
static void signal_thaw(struct freezer *fz, uintptr_t address, uint64_t n)
{
    for (uint64_t i = 0, length; i < n; i += length) {
        for (length = 1; i + length < n && fz->mapped[i + length] == fz->mapped[i];)
            length++;
        if (!fz->mapped[i])
            give_back(fz, address + bytes_of(i), length, false);
    }
    let_writers_in(fz);
}

/*
 * The shadow is read-only except for the part that is being filled.  That part is a mapping of its
 * own, too short for the kernel to put a huge page there.
 */
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
    error = block_writers(fz, address, n, true);
    if (!error)
        error = freezer_still(fz, address, n);
    if (!error)
        error = freezer_copy(from, address, n);
    if (!error)
        error = freezer_replace(fz, address, from, n);
    if (error)
        give_back(fz, address, n, true);
    let_writers_in(fz);
    return error;
}

/*
 * Another process that read all of our memory may have filled the shadow, hence it is emptied.  One
 * page more than is moved is made writable.  A mapping that is moved whole leaves an empty place
 * without its identity, which would stay a mapping of its own when it is read-only again.
 */
static int from_shadow(struct freezer *fz, uintptr_t address, uintptr_t shadow, uint64_t n)
{
    int error = os_protect(shadow, n + 1, true);
    if (!error)
        error = os_drop(shadow, n);
    if (!error)
        error = replace_by(fz, address, shadow, n);
    if (fz->moved_for_good)
        return 0;
    os_drop(shadow, n);
    os_protect(shadow, n + 1, false);
    return error;
}

static int from_stage(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags)
{
    int error = stage_need(fz);
    if (!error)
        error = replace_by(fz, address, fz->stage, n);
    if (error)
        return error;
    stage_slide(fz, n);
    os_set_vma_flags(address, n, vma_flags);
    return 0;
}

/*
 * The shadow's pages are taken where there are any: those of the stage have an identity of their
 * own, and cost mappings.
 */
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
