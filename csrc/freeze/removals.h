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

#include <stdbool.h>
#include <stdint.h>

#include "freeze/ops.h"
#include "freeze/removed.h"

/* Which file's private mappings are overlays. */
void freezer_know_store(struct freezer *fz, uint64_t inode, uint64_t dev);
/*
 * Overlays that their owner has given back, and that map no frame any more: the next such range,
 * once.  With more to tell than there is room for: true once, and the mappings tell the rest.
 */
bool freezer_removed(struct freezer *fz, struct removed *removed);
bool freezer_removed_more(struct freezer *fz);

int removals_open(struct freezer *fz);           /* or -errno, and close is to be called */
int removals_start(struct freezer *fz);          /* once there is something to give back */
void removals_stop(struct freezer *fz);

/* Nothing is given back meanwhile: what is frozen, and what changes hands. */
void removals_hold(struct freezer *fz);
void removals_let_go(struct freezer *fz);
/* Held: may a thread whose message was read still take some of it away? */
bool is_being_given_back(struct freezer *fz, uintptr_t address, uint64_t n);
/* Held: is every page of it an overlay right now? */
bool is_all_overlay(struct freezer *fz, uintptr_t address, uint64_t n);

#endif
