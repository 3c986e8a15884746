/* The stage: where pages lie that are about to take the place of an overlay's. */
#include "freeze.h"

#include <errno.h>

#define STAGES ((uint64_t)1 << 18) /* pages: 1 GiB of address space */

/*
 * Memory that was touched keeps its identity when it is moved: its anon_vma, and its offset.  So
 * the stage slides through a reservation: pieces that are moved one after the other to places one
 * after the other become one mapping.  Another stage of it is always committed ahead, which keeps
 * the anon_vma when the one before is gone.
 */
int stage_open(struct freezer *fz)
{
    uintptr_t base = (uintptr_t)os_reserve(bytes_of(STAGES));
    if (!base)
        return -ENOMEM;
    int error = os_commit((void *)base, bytes_of(2 * FREEZE_MAX));
    if (error) {
        os_unmap((void *)base, bytes_of(STAGES));
        return error;
    }
    os_unmap((void *)fz->stage, fz->stage_end ? fz->stage_end - fz->stage : bytes_of(FREEZE_MAX));
    fz->stage = base;
    fz->stage_end = base + bytes_of(STAGES);
    return 0;
}

/* Where that fails the stage stays, and costs mappings. */
void stage_slide(struct freezer *fz, uint64_t n)
{
    uintptr_t ahead = fz->stage + bytes_of(2 * FREEZE_MAX);
    if (ahead + bytes_of(n) > fz->stage_end) {
        stage_open(fz);
    } else if (os_commit((void *)ahead, bytes_of(n)) == 0) {
        os_unmap((void *)fz->stage, bytes_of(n));
        fz->stage += bytes_of(n);
    }
}

void stage_close(struct freezer *fz)
{
    if (fz->stage_end)
        os_unmap((void *)fz->stage, fz->stage_end - fz->stage);
    else
        os_unmap((void *)fz->stage, bytes_of(FREEZE_MAX));
    fz->stage = fz->stage_end = 0;
}
