/*
 * What a freezer knows of memory that its owner gives back: see freeze/removal_thread.h.
 */
#ifndef KSMPY_FREEZE_REMOVAL_STATE_H
#define KSMPY_FREEZE_REMOVAL_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "freeze/helper.h"
#include "os/arena.h"
#include "os/given_back.h"
#include "os/proc_maps.h"

#define REMOVAL_NOTES 256
#define REMOVAL_LEAVERS 64
#define REMOVAL_THREADS (1 << 16) /* threads in madvise() that are seen at one look, at most */

/* Overlays that are anonymous memory now. */
struct removed {
    uintptr_t start, end;
    uint64_t offset; /* in the store's file, of the first */
};

/* A thread whose message was read: it takes these pages away, or has done so. */
struct leaver {
    uintptr_t start, end;
    struct os_removal call;
    uint64_t until; /* ns, monotonic: by then it is taken to have done so */
};

struct removals {
    int overlay_fd; /* overlays belong to it, and track their writes; or -1 */
    int gate_fd;    /* what is frozen belongs to it, and its writers wait; or -1 */
    int stop_fd;    /* tells the thread to end */
    int tasks_fd;   /* what other threads do */
    struct os_maps maps;
    uint64_t inode, dev; /* of the store, whose private mappings are the overlays */
    struct helper helper;
    /* Guards what follows. Its holder must not wait for a thread that may wait for a message. */
    pthread_mutex_t quiet;
    _Atomic bool wanted; /* the thread wants quiet: see removals_hold() */
    struct removed notes[REMOVAL_NOTES];
    int notes_n;
    bool overflown; /* there was no room for a note */
    struct leaver leavers[REMOVAL_LEAVERS];
    int leavers_n;
    struct arena seen;     /* calls of one look */
    struct arena prepared; /* calls whose overlays have been replaced */
    int prepared_n;
};

void removals_forget(struct removals *removals); /* as if it had never been opened */
/* Closes all but the descriptors, which freezer_close_files() closes. */
void removals_close(struct removals *removals);

#endif
