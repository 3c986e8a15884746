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
#ifndef KSMPY_FREEZE_REMOVAL_THREAD_H
#define KSMPY_FREEZE_REMOVAL_THREAD_H

#include <stdbool.h>
#include <stdint.h>

#include "freeze/ops.h"
#include "freeze/removal_state.h"

/* Says by which file overlays are known: they are its private mappings. */
void freezer_know_store(struct freezer *fz, uint64_t inode, uint64_t dev);
/*
 * The next range of overlays that their owner has given back, and that map no frame any more; each
 * is told once.  If there was no room to note all, freezer_removed_more() is true once, and the
 * caller finds the rest by the mappings.
 */
bool freezer_removed(struct freezer *fz, struct removed *removed);
bool freezer_removed_more(struct freezer *fz);

int removals_open(struct freezer *fz);  /* or -errno, and the files are to be closed */
int removals_start(struct freezer *fz); /* starts the thread, with the first region */
void removals_stop(struct freezer *fz);

/* Keeps the thread from its work while memory is frozen or goes from one userfaultfd to another. */
void removals_hold(struct freezer *fz);
void removals_let_go(struct freezer *fz);
/* Held: may a thread whose message was read still take some of it away? */
bool is_being_given_back(struct freezer *fz, uintptr_t address, uint64_t n);
/* Held: is every page of it an overlay right now? */
bool is_all_overlay(struct freezer *fz, uintptr_t address, uint64_t n);

#endif
