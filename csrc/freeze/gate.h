/*
 * Whom memory belongs to.  A mapping has one userfaultfd.  A region's pages are at home with one
 * that tracks writes, or answers missing pages, and asks nobody who gives them back.  While they
 * are frozen they belong to the gate: there whoever writes to them, misses them or gives them back
 * waits.  What becomes an overlay meanwhile stays with the userfaultfd of overlays.
 */
#ifndef KSMPY_FREEZE_GATE_H
#define KSMPY_FREEZE_GATE_H

#include <stdbool.h>

#include "freeze/ops.h"

/* What is frozen belongs to it. */
int gate_of(const struct freezer *fz);
/* Nothing becomes an overlay, and nothing is away: only writers wait, and who gives it back. */
bool gate_is_in_place(const struct freezer *fz);
/*
 * What is frozen in place becomes holes, which read as zeros; locked memory is not to have any
 * (EINVAL).  By madvise() we would wait for ourselves, as its owner does, who may want to write
 * there next: so the pages are moved away, and go.
 */
int gate_empty(struct freezer *fz, uintptr_t address, uint64_t n);
/* From home to the gate. On error too gate_give_back() is to be called. */
int gate_take(struct freezer *fz, uintptr_t address, uint64_t n, int uffd_mode);
/* Back home, but for overlays; whoever waits goes on. */
void gate_give_back(struct freezer *fz, uintptr_t address, uint64_t n);

/*
 * Overlays become anonymous memory (see stage_bring_back()) while they belong to the gate.  Their
 * writers wait until the caller has registered that memory and wakes them; on error they go on, and
 * the overlays are tracked as before.
 */
int gate_bring_back(struct freezer *fz, uintptr_t address, uint64_t n, uintptr_t shadow,
                    int vma_flags);

#endif
