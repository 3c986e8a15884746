/*
 * What a freezer knows of memory that its owner gives back: see freeze/removals.h.
 */
#ifndef KSMPY_FREEZE_REMOVED_H
#define KSMPY_FREEZE_REMOVED_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "freeze/helper.h"
#include "os/direct_io.h"
#include "os/maps.h"

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
/* But for the descriptors, which are the freezer's. */
void removals_close(struct removals *removals);

#endif
