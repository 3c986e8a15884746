/*
 * What a freezer is made of, and what each way of freezing does itself: freeze/uffd_away.c,
 * freeze/uffd_wp.c and freeze/signal.c.
 */
#ifndef KSMPY_FREEZE_OPS_H
#define KSMPY_FREEZE_OPS_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/pages.h"
#include "freeze/bystanders.h"
#include "freeze/helper.h"
#include "freeze/removal_state.h"

/* Longest range of small pages frozen at once: bounds how long a thread may wait. */
#define FREEZE_MAX 128
/* A huge page is frozen, mapped over and freed as one; to split it would take longer than that. */
#define FREEZE_HUGE HUGE_PAGES

#define FREEZER_FILES 9

#define KEPT_PLACES 4
#define KNOWN_MAPPINGS 4

/* What was one mapping, from its begin to the start of a region that had been a part of it. */
struct known_mapping {
    uintptr_t begin; /* 0: none */
    uintptr_t reach;
    bool refused; /* below it there was no place for a page */
};

struct freezer {
    int mode;      /* enum ksmpy_freeze, never AUTO */
    const struct freezer_ops *ops;
    bool tracked;  /* regions are registered for asynchronous write protection */
    pthread_mutex_t lock;
    sigset_t signals; /* that its holder blocked before it took it */

    _Atomic uint32_t thaws; /* counts up: what waited before was woken, and needs no answer */
    uintptr_t start, end;  /* what is frozen, or was to be; guarded by the lock */
    bool hole[FREEZE_HUGE]; /* frozen page was not there: its view must not be touched */
    bool mapped[FREEZE_HUGE]; /* frozen page is an overlay by now */
    bool to_zeros; /* of what is frozen nothing becomes an overlay */
    bool in_place; /* what is frozen stays where it is, protected page by page */
    bool taken; /* something belongs to the gate, and is to go home */

    int uffd;      /* missing pages of regions, and their write tracking; or -1 */
    int wp_fd; /* for calls on memory that any userfaultfd of ours may have; or -1 */
    int stop_fd; /* tells the fault thread to end */
    int pagemap_fd;
    int tasks_fd; /* /proc/self/task: what other threads do */
    uint64_t inodes[FREEZER_FILES]; /* of the descriptors, in file_of()'s order; 0: not known yet */
    struct helper helper; /* the fault thread */
    struct removals removals;
    struct bystanders bystanders;
    uintptr_t windows[2]; /* one for small pages, one for a huge page; 0: none */
    uintptr_t *window; /* that of the two in which the frozen pages are */
    bool torn; /* the huge window has a page table now, so that no huge page fits in */
    bool window_lost; /* it has holes, in which others may map memory */
    uintptr_t stage; /* copies of overlay pages on their way back; 0: none */
    bool
        moved_for_good; /* what came back last has left a hole where it was: see freezer_replace() */
    uintptr_t
        ready; /* a reservation of FREEZE_HUGE pages, where overlays are made ready; 0: none */
    uintptr_t
        ready_for; /* the pages for which some are ready there, how many, and of where in the file */
    uint64_t ready_n, ready_offset;
    uintptr_t trash; /* a reservation of FREEZE_HUGE pages, where pages are dropped; 0: none */
    uintptr_t stage_end; /* the end of what the stage slides through; 0: it does not slide */
    uintptr_t kept[KEPT_PLACES]; /* pages that shadows were borrowed from; 0: none */
    unsigned kept_next;
    struct known_mapping known[KNOWN_MAPPINGS];
    unsigned known_next;
    void *zeros; /* one page */
    int slot; /* in the mode signal: its entry in the handler's table */
    bool made_read_only; /* in the mode signal: so what is frozen becomes writable again */
};

/*
 * What a way does itself; freeze/freezer.c calls it, with the lock held where freezer.h says so.
 */
struct freezer_ops {
    int registration; /* enum os_uffd_mode of a region's memory, tracked or not */
    int features; /* enum os_uffd_feature of the userfaultfds that freeze */
    bool forgets_writes; /* tracking forgets what was written to pages before they were frozen */
    bool read_only; /* what is frozen is mapped without the right to write */
    bool zeros_away; /* pages that become zeros are taken away as well while they are frozen */
    bool refuses_pinned; /* a page that anything pins for a device cannot be frozen: EBUSY */
    bool holds_up_writers_only; /* so 512 small pages may be frozen together, like a huge page */
    bool fills_holes; /* at registration, so that no first touch comes to the fault thread */
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
     * Fills a range that a failed mremap has unmapped.  It is claimed and not committed yet, and
     * must have its bytes, which are at from, before anybody can read it.
     */
    void (*rebuild)(struct freezer *fz, uintptr_t address, uintptr_t from, uint64_t n);
};

#endif
