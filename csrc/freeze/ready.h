/*
 * Overlays that are made ready before anything is frozen: mapped elsewhere, and faulted in.
 *
 *   elsewhere | frame frame frame |            a fault maps FAULT_AROUND pages of the file
 *   region    |   a  |  b  |  c   |            frozen and compared meanwhile
 *   exchange  | frame frame frame |            moved there with their page tables
 *
 * In its place an overlay belongs to a userfaultfd, which hears of what its owner gives back.  There the
 * kernel maps no pages around a fault: to fault in 512 pages of a huge page takes 290 us, elsewhere
 * 40 (Linux 6.18).
 */
#ifndef KSMPY_FREEZE_READY_H
#define KSMPY_FREEZE_READY_H

#include <stdbool.h>
#include <stdint.h>

#include "freeze/ops.h"

/*
 * Maps frames in a row for n pages, at most FREEZE_HUGE, which end within a huge page's place.  false:
 * there is nothing to be gained, no memory or mapping for it, or address space is limited.  It takes
 * up to two mappings until ready_end().
 */
bool ready_make(struct freezer *fz, uintptr_t address, uint64_t n, int memfd, uint64_t offset);
/*
 * Replaces pages by what was made ready for them, as os_map_frames() does.  -ENOENT: that is nothing, and
 * they are what they were.
 */
int ready_move(struct freezer *fz, uintptr_t address, uint64_t n, int memfd, uint64_t offset);
void ready_end(struct freezer *fz);

#endif
