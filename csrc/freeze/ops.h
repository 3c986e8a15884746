/*
 * What a freezer is made of, and what each way of freezing does itself: freeze/uffd_away.c,
 * freeze/uffd_wp.c and freeze/signal.c.
 */
#ifndef KSMPY_FREEZE_OPS_H
#define KSMPY_FREEZE_OPS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/pages.h"
#include "freeze/helper.h"
#include "freeze/removed.h"

/* Longest range of small pages frozen at once: bounds how long a thread may wait. */
#define FREEZE_MAX 128
/* A huge page is frozen, mapped over and freed as one; to split it would take longer than that. */
#define FREEZE_HUGE HUGE_PAGES

#define FREEZER_FILES 9

#define KEPT_PLACES 4

struct freezer {
    int mode;      /* enum ksmpy_freeze, never AUTO */
    const struct freezer_ops *ops;
    bool tracked;  /* regions are registered for asynchronous write protection */
    bool waits_in_calls; /* faults of system calls wait too, where others fail (EFAULT) */
    pthread_mutex_t lock;

    _Atomic uint32_t thaws; /* counts up: what waited before was woken, and needs no answer */
    uintptr_t start, end;  /* what is frozen, or was to be; guarded by the lock */
    bool hole[FREEZE_HUGE]; /* frozen page was not there: its view must not be touched */
    bool mapped[FREEZE_HUGE]; /* frozen page is an overlay by now */
    bool to_zeros; /* of what is frozen nothing becomes an overlay */
    bool taken; /* something belongs to the gate, and is to go home */

    int uffd;      /* missing pages of regions, and their write tracking; or -1 */
    int wp_fd; /* what is said of any memory, whoever has it, is said to this one; or -1 */
    int stop_fd; /* tells the fault thread to end */
    int pagemap_fd;
    int tasks_fd; /* what other threads do */
    uint64_t inodes[FREEZER_FILES]; /* of these descriptors, in their order; 0: not yet known */
    struct helper helper; /* the fault thread */
    struct removals removals;
    uintptr_t windows[2]; /* for small pages, for a huge one; 0: none */
    uintptr_t *window; /* where the frozen pages are kept, one of the two */
    bool torn; /* the huge window has a page table now, so that no huge page fits in */
    uintptr_t stage; /* copies of overlay pages on their way back */
    uintptr_t trash; /* a reservation of FREEZE_HUGE pages, for what goes; 0: none */
    uintptr_t stage_end; /* of the reservation that the stage slides through; 0: it does not */
    uintptr_t kept[KEPT_PLACES]; /* pages that shadows were borrowed from; 0: none */
    unsigned kept_next;
    void *zeros; /* one page */
    int slot; /* signal: which entry of the handler's table */
};

/*
 * What a way does itself; freeze/freezer.c calls it, with the lock held where freezer.h says so.
 */
struct freezer_ops {
    int registration; /* enum os_uffd_mode of a region's memory, tracked or not */
    int features;     /* enum os_uffd_feature, of whatever freezes */
    bool forgets_writes; /* tracking forgets what was written to pages before they were frozen */
    bool read_only;      /* what is frozen is mapped without the right to write */
    bool zeros_away;     /* pages of zeros, too, are away while they are frozen */
    bool refuses_pinned; /* a page that anything pins for a device cannot be frozen: EBUSY */
    bool holds_up_writers_only; /* small pages in a huge page's place are frozen together, too */
    bool fills_holes; /* at registration: no first touch is to come to the fault thread */
    int (*init)(struct freezer *fz);
    int (*start)(struct freezer *fz); /* or NULL: it has no thread */
    void (*stop)(struct freezer *fz); /* or NULL: it has nothing that runs */
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

#endif
