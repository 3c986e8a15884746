/*
 * Memory that its owner gives back while it is merged or frozen: madvise(MADV_DONTNEED, MADV_FREE).
 *
 * Of an overlay that would bring the frame's bytes back instead of zeros.  But overlays, and what
 * is frozen, belong to userfaultfds with UFFD_FEATURE_EVENT_REMOVE: the thread in madvise() waits
 * until its message is read, and only then takes the pages away.  So a thread of ours puts
 * anonymous memory in the place of the overlays in that range before it reads; which range that is,
 * /proc/self/task/TID/syscall says.  It does so while nothing is frozen.
 *
 * Every other page of a region belongs to a userfaultfd without that feature: who gives it back
 * waits for nobody, and no system call of ours on it does.
 */
#ifndef KSMPY_FREEZE_REMOVALS_H
#define KSMPY_FREEZE_REMOVALS_H

#include <pthread.h>
#include <stdatomic.h>

#include "freeze/helper.h"
#include "os/direct_io.h"
#include "os/maps.h"

struct freezer;

#define REMOVAL_NOTES 256
#define REMOVAL_LEAVERS 64
#define REMOVAL_THREADS 32 /* that wait at the same time, and are heeded */

/* Overlays that are anonymous memory now. */
struct removed {
    uintptr_t start, end;
    uint64_t offset; /* in the store's file, of the first */
};

/* Its message was read: it takes these pages away, or has done so. */
struct leaver {
    uintptr_t start, end;
    struct os_removal call;
    uint64_t until; /* ns: by then it has, for all we know */
};

struct removals {
    int overlay_fd; /* overlays belong to it, and track their writes; or -1 */
    int gate_fd;    /* what is frozen belongs to it, and its writers wait; or -1 */
    int stop_fd;    /* tells the thread to end */
    int tasks_fd;   /* what other threads do */
    struct os_maps maps;
    uint64_t inode, dev; /* of the store, whose private mappings are the overlays */
    struct helper helper;
    /* For what follows. Who holds it waits for no thread that may wait for a message. */
    pthread_mutex_t quiet;
    _Atomic bool wanted; /* by the thread */
    struct removed notes[REMOVAL_NOTES];
    int notes_n;
    bool overflown; /* there was no room for a note */
    struct leaver leavers[REMOVAL_LEAVERS];
    int leavers_n;
    struct os_removal prepared[REMOVAL_THREADS]; /* whose overlays are replaced */
    int prepared_n;
};

void removals_forget(struct removals *removals); /* as if it had never been opened */
int removals_open(struct freezer *fz);           /* or -errno, and close is to be called */
int removals_start(struct freezer *fz);          /* once there is something to give back */
void removals_stop(struct freezer *fz);
void removals_close(struct freezer *fz); /* but for the descriptors, which are the freezer's */

/* Nothing is given back meanwhile: what is frozen, and what changes hands. */
void removals_hold(struct freezer *fz);
void removals_let_go(struct freezer *fz);
/* Held: may a thread whose message was read still take some of it away? */
bool is_being_given_back(struct freezer *fz, uintptr_t address, uint64_t n);
/* Held: is every page of it an overlay right now? */
bool is_all_overlay(struct freezer *fz, uintptr_t address, uint64_t n);

#endif
