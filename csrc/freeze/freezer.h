/*
 * Freezing: for some microseconds a page range cannot be reached by any other
 * thread, nor written by the kernel on a thread's behalf, while its bytes are
 * compared and its mapping is exchanged.
 *
 *   freeze(address, n)     takes the freezer's lock; the bytes are at *view
 *     freeze_overlay(...)    a part of the range is mapped onto frames
 *     freeze_zero(...)       a part becomes the kernel's zero page
 *     freeze_restore(...)    a part goes back as it was
 *   thaw()                 whoever touched the range meanwhile goes on; lock released
 *
 * Every frozen page must be given to exactly one of the three before thaw().
 *
 * What the address space looks like, uffd-move, pages b and c equal a frame:
 *
 *   region  | a | b | c | d |        scratch window  |   |   |
 *   freeze  | a |   |   | d |                        | b | c |    a touch of b or c waits
 *   compare                                          memcmp with the frames
 *   overlay | a | frame frame | d |                  | b | c |    two mappings more
 *   thaw    | a | frame frame | d |                  |   |   |    waiters retry, and read the frame
 *
 * uffd-remap does the same with mremap(MREMAP_DONTUNMAP); signal leaves the
 * pages where they are, readable, and lets writers wait in a SIGSEGV handler.
 *
 * Between freeze() and thaw() the caller must not fault on registered memory,
 * allocate, or take a lock that a thread may hold while it touches a region.
 *
 * Limits.  With a userfaultfd for user mode only, a system call that touches a
 * frozen page fails with EFAULT; so it does with "signal", if it writes.
 * Devices that write into memory: uffd-move leaves a page that is pinned for
 * one alone, whatever pins it; the other ways, and unmerging in all of them,
 * notice direct I/O that a thread waits for (EBUSY), but not asynchronous I/O
 * and memory pinned for long (see os/direct_io.c).
 */
#ifndef KSMPY_FREEZE_H
#define KSMPY_FREEZE_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "base/pages.h"
#include "os/uffd.h"

/* Longest range of small pages frozen at once: bounds how long a thread may wait. */
#define FREEZE_MAX 128
/* A huge page is frozen, mapped over and freed as one; to split it would take longer than that. */
#define FREEZE_HUGE HUGE_PAGES

#define FREEZER_FILES 5

struct freezer {
    int mode;      /* enum ksmpy_freeze, never AUTO */
    const struct freezer_ops *ops;
    bool tracked;  /* regions are registered for asynchronous write protection */
    bool helped;   /* the fault thread runs */
    bool waits_in_calls; /* faults of system calls wait too, where others fail (EFAULT) */
    pthread_mutex_t lock;

    _Atomic uint32_t thaws; /* counts up: what waited before was woken, and needs no answer */
    uintptr_t start, end;  /* what is frozen, or was to be; guarded by the lock */
    bool hole[FREEZE_HUGE]; /* frozen page was not there: its view must not be touched */

    int uffd;      /* missing pages of regions, and their write tracking; or -1 */
    int wp_fd; /* blocks writers of overlays while they are unmerged, and see uffd-wp; or -1 */
    int stop_fd; /* tells the fault thread to end */
    int pagemap_fd;
    int tasks_fd; /* what other threads do */
    uint64_t inodes[FREEZER_FILES]; /* of these descriptors, in their order; 0: not yet known */
    pthread_t thread;
    uintptr_t stack; /* the thread's */
    size_t stack_bytes;
    uintptr_t windows[2]; /* for small pages, for a huge one; 0: none */
    uintptr_t *window; /* where the frozen pages are kept, one of the two */
    bool torn; /* the huge window has a page table now, so that no huge page fits in */
    uintptr_t stage; /* copies of overlay pages on their way back */
    uintptr_t stage_end; /* of the reservation that the stage slides through; 0: it does not */
    void *zeros; /* one page */
    int slot; /* signal: which entry of the handler's table */
};

/* mode and tracking as chosen by the engine; -errno, and nothing is left behind. */
int freezer_init(struct freezer *fz, int mode, bool tracked);
void freezer_destroy(struct freezer *fz);
/* In a forked child: lets go of what belongs to the parent, without touching its memory. */
void freezer_abandon(struct freezer *fz);

/*
 * Is this descriptor of the freezer's still what it was?  The program may have closed all it found,
 * and opened files of its own that have their numbers now.
 */
bool freezer_has(const struct freezer *fz, int fd);
bool freezer_has_files(const struct freezer *fz); /* all of them */

int freezer_attach(struct freezer *fz, uintptr_t address, uint64_t n);
/* How many mappings more that may take. */
uint64_t freezer_mappings(const struct freezer *fz);
int freezer_detach(struct freezer *fz, uintptr_t address, uint64_t n);

/*
 * How many leading pages freeze() would try to freeze: no further than the next huge page, which
 * is then frozen as one.
 */
uint64_t freeze_reach(const struct freezer *fz, uintptr_t address, uint64_t n);
/* How many leading pages are frozen (1 to n), with the lock held; or -errno without it. */
int64_t freeze(struct freezer *fz, uintptr_t address, uint64_t n, const uint8_t **view);
void freeze_restore(struct freezer *fz, uint64_t first, uint64_t n);
int freeze_overlay(struct freezer *fz, uint64_t first, uint64_t n, int memfd, uint64_t offset);
int freeze_zero(struct freezer *fz, uint64_t first, uint64_t n, int vma_flags);
void thaw(struct freezer *fz);

/*
 * From now on writes to overlays in the range are noted, if the freezer tracks at all; or -errno.
 * Should the owner have put other memory there, that is registered as its own memory would be.
 */
int freezer_track_overlay(struct freezer *fz, uintptr_t address, uint64_t n);

/*
 * Address space for n pages and one more that has the identity of the memory at address, where
 * nothing may be an overlay yet; or 0, if there is none to be had.  Memory that comes from the
 * same place in it makes one mapping with its neighbours again.
 */
uintptr_t freezer_shadow(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags);

/*
 * Turns up to FREEZE_MAX overlay pages back into private anonymous memory with
 * the bytes they show now, while other threads use them.  Every mapping in the
 * range must be an overlay.  blank: their place in the shadow of their region,
 * or 0.  On error they are as before.
 */
int freezer_unoverlay(struct freezer *fz, uintptr_t address, uint64_t n, uintptr_t blank,
                      int vma_flags);

/* ---- the ways of freezing, and what they have in common ---- */

/* What a way does itself; freeze/freezer.c calls it with the lock held where it says so above. */
struct freezer_ops {
    int registration; /* enum os_uffd_mode of a region's memory, tracked or not */
    bool forgets_writes; /* tracking forgets what was written to pages before they were frozen */
    bool fills_holes; /* at registration: no first touch is to come to the fault thread */
    int (*init)(struct freezer *fz);
    int (*start)(struct freezer *fz); /* or NULL: it has no thread */
    void (*stop)(struct freezer *fz);
    void (*abandon)(struct freezer *fz); /* in a forked child: forgets, or frees its own copy */
    int64_t (*freeze)(struct freezer *fz, uintptr_t address, uint64_t n, const uint8_t **view);
    void (*restore)(struct freezer *fz, uintptr_t address, uint64_t first, uint64_t n);
    int (*zero)(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags);
    void (*thaw)(struct freezer *fz, uintptr_t address, uint64_t n);
    /* Or NULL: none. */
    uintptr_t (*shadow)(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags);
    int (*unoverlay)(struct freezer *fz, uintptr_t address, uint64_t n, uintptr_t blank,
                     int vma_flags);
    /*
     * The range is claimed, not committed: it gets its bytes back before it can be read, from what
     * was to be moved there or from the stage.
     */
    void (*rebuild)(struct freezer *fz, uintptr_t address, uintptr_t from, uint64_t n);
};

extern const struct freezer_ops freeze_by_protection; /* freeze/uffd_wp.c */
extern const struct freezer_ops freeze_by_uffd;
extern const struct freezer_ops freeze_by_signal;

/* How memory of regions is registered with their userfaultfd (enum os_uffd_mode); 0: not at all. */
static inline int freezer_registration(const struct freezer *fz)
{
    return fz->ops->registration | (fz->tracked ? OS_UFFD_WP : 0);
}

/* Protects what belongs to wp_fd: from then on its writers wait. */
int freezer_block_writers(struct freezer *fz, uintptr_t address, uint64_t n);
/* Of overlay pages that no thread can write now: -EBUSY when a device may do so, into a copy. */
int freezer_still(struct freezer *fz, uintptr_t address, uint64_t n);
/* What they show, to the stage; -EFAULT: a part of them is gone. */
int freezer_copy(struct freezer *fz, uintptr_t address, uint64_t n);
/*
 * Moves the memory at from over overlay pages; should the target be lost meanwhile, it is rebuilt.
 */
int freezer_replace(struct freezer *fz, uintptr_t address, uintptr_t from, uint64_t n);

/*
 * The stage holds copies of up to FREEZE_MAX overlay pages on their way back.  A sliding one
 * lends its pages themselves: what was moved away is followed by fresh ones.
 */
int stage_open(struct freezer *fz);
void stage_slide(struct freezer *fz, uint64_t n); /* past n pages that were moved away */
void stage_close(struct freezer *fz);
/* Copies pages to where there are none, in memory that wp_fd is registered for missing pages of. */
int stage_fill(struct freezer *fz, uintptr_t to, uintptr_t from, uint64_t n);
/*
 * Overlay pages, which nobody can write now, become anonymous memory with their bytes, in one step:
 * from the shadow, or where there is none from the stage, and that costs mappings.
 */
int stage_bring_back(struct freezer *fz, uintptr_t address, uint64_t n, uintptr_t shadow,
                     int vma_flags);

/* In the signal handler: true: this was a fault of ours, and is over; or else it is not ours. */
bool signal_claims(const siginfo_t *info);
/*
 * A handler of the program's is about to run with SIGSEGV blocked: from now on nothing is frozen.
 * true: signal_leave_guest() is to be called when it returns.
 */
bool signal_enter_guest(void);
void signal_leave_guest(void);

#endif
