/*
 * The gate: the userfaultfd that frozen memory belongs to.  A mapping can belong to one userfaultfd
 * only.  A region's pages are at home with one that tracks writes, or answers missing pages; a
 * thread that gives them back (madvise) does not wait.  While they are frozen they belong to the
 * gate, which makes threads wait that write to them, miss them or give them back.  Pages that
 * become overlays meanwhile go to the userfaultfd of overlays.
 */
#ifndef KSMPY_FREEZE_GATE_H
#define KSMPY_FREEZE_GATE_H

#include <stdbool.h>

#include "freeze/ops.h"

/* The gate's descriptor, or -1. */
int gate_of(const struct freezer *fz);
/*
 * Are the frozen pages only protected, and not taken away?  So it is where they become zeros and
 * the way of freezing allows for it: only writers wait then, and threads that give the pages back.
 */
bool gate_is_in_place(const struct freezer *fz);
/*
 * Turns pages that are frozen in place into holes, which read as zeros.  Locked memory must not
 * have holes (EINVAL).  The pages are moved away and dropped there: a madvise() by this thread
 * would wait until its own message is read.
 */
int gate_empty(struct freezer *fz, uintptr_t address, uint64_t n);
/* Moves memory from its home to the gate.  After an error gate_give_back() is to be called, too. */
int gate_take(struct freezer *fz, uintptr_t address, uint64_t n, int uffd_mode);
/* Moves all that has not become an overlay back to its home, and wakes those who wait. */
void gate_give_back(struct freezer *fz, uintptr_t address, uint64_t n);

/*
 * Overlays become anonymous memory (see stage_bring_back()) while they belong to the gate.  Their
 * writers wait until the caller has registered that memory and wakes them; on error they go on, and
 * the overlays are tracked as before.
 */
int gate_bring_back(struct freezer *fz, uintptr_t address, uint64_t n, uintptr_t shadow,
                    int vma_flags);

#endif
