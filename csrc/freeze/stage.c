#include "freeze/stage.h"

#include <errno.h>

#include "base/pages.h"
#include "freeze/ops.h"
#include "freeze/replace.h"
#include "os/clock.h"
#include "os/map.h"
#include "os/own_memory.h"
#include "os/uffd.h"

#define RETRIES 64 /* how often UFFDIO_COPY is repeated, 50 us apart, while mappings change */

/*
 * Pages of address space that the stage slides through (1 GiB).  It costs no memory; what is
 * brought back from one such reservation in a row becomes one mapping.
 */
#define STAGES ((uint64_t)1 << 18)

/*
 * What a stage holds becomes the program's memory, which a core has: all but what is committed is
 * left out of one.
 */
static int commit(uintptr_t address, uint64_t n)
{
    int error = os_do_dump((void *)address, bytes_of(n));
    return error ? error : os_commit((void *)address, bytes_of(n));
}

/*
 * Memory that was touched keeps its identity when it is moved: its anon_vma, and its offset.  So
 * the stage slides through a reservation: pieces that are moved one after the other to places one
 * after the other become one mapping.  The memory of the next stage is always committed as well: it
 * is one mapping with the present stage, and so still has the anon_vma when that was moved away.
 */
int stage_open(struct freezer *fz)
{
    uintptr_t base = (uintptr_t)os_reserve(bytes_of(STAGES));
    if (!base)
        return -ENOMEM;
    os_dont_dump((void *)base, bytes_of(STAGES));
    int error = commit(base, 2 * FREEZE_MAX);
    if (error) {
        os_unmap((void *)base, bytes_of(STAGES));
        return error;
    }
    os_unmap((void *)fz->stage, fz->stage_end ? fz->stage_end - fz->stage : bytes_of(FREEZE_MAX));
    fz->stage = base;
    fz->stage_end = base + bytes_of(STAGES);
    return 0;
}

int stage_need(struct freezer *fz)
{
    return fz->stage ? 0 : stage_open(fz);
}

/* Its first n pages are a hole, which may be others' memory by now. */
static void lose_stage(struct freezer *fz, uint64_t n)
{
    uintptr_t rest = fz->stage + bytes_of(n);
    uintptr_t end = fz->stage_end ? fz->stage_end : fz->stage + bytes_of(FREEZE_MAX);
    os_disown(fz->stage, bytes_of(n));
    if (rest < end)
        os_unmap((void *)rest, end - rest);
    fz->stage = fz->stage_end = 0;
}

/* If no memory can be committed the stage stays in its place, and costs mappings from then on. */
void stage_slide(struct freezer *fz, uint64_t n)
{
    uintptr_t ahead = fz->stage + bytes_of(2 * FREEZE_MAX);
    if (fz->moved_for_good)
        lose_stage(fz, n);
    else if (ahead + bytes_of(n) > fz->stage_end) {
        stage_open(fz);
    } else if (commit(ahead, n) == 0) {
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

int stage_fill(int fd, uintptr_t to, uintptr_t from, uint64_t n)
{
    for (int tries = 0; n;) {
        int64_t done = os_uffd_copy(fd, to, (const void *)from, n);
        if (done == -ENOENT || done == -ENOMEM || (done <= 0 && ++tries > RETRIES))
            return done ? (int)done : -EAGAIN;
        if (done <= 0) {
            os_sleep_us(50);
            continue;
        }
        to += bytes_of((uint64_t)done);
        from += bytes_of((uint64_t)done);
        n -= (uint64_t)done;
    }
    return 0;
}

/*
 * Fills a part of the shadow with the bytes that an overlay shows, by UFFDIO_COPY, which makes
 * small pages: a fault could put a huge page there, most of which would stay behind in the shadow.
 * Another process that reads all of our memory (a debugger) may have filled the shadow, and
 * UFFDIO_COPY fills only what is empty.  So the shadow is emptied, after it was registered for
 * missing pages, when a touch does not fill it any more.
 */
static int fill_shadow(struct freezer *fz, uintptr_t shadow, uintptr_t address, uint64_t n)
{
    int error = os_uffd_register(fz->wp_fd, shadow, n, OS_UFFD_MISSING);
    if (error)
        return error;
    error = os_drop(shadow, n);
    /*
     * To protect the overlay has removed the one entry that mapped it as a huge page.  Without this
     * the copy would take a fault for each small page: two arrays of 192 MiB took 0.32 s of
     * processor time instead of 0.24.
     */
    os_populate(address, n, false);
    if (!error)
        error = stage_fill(fz->wp_fd, shadow, address, n);
    os_uffd_unregister(fz->wp_fd, shadow, n);
    return error;
}

/*
 * mremap takes no range that crosses mappings (EFAULT): mlockall() and the like may have cut the
 * shadow in pieces.  -ENOENT then makes the caller use the stage.
 */
static int from_shadow(struct freezer *fz, uintptr_t address, uintptr_t shadow, uint64_t n)
{
    int error = fill_shadow(fz, shadow, address, n);
    if (!error)
        error = freezer_replace(fz, address, shadow, n);
    if (error)
        os_drop(shadow, n);
    return error == -EFAULT ? -ENOENT : error;
}

/*
 * The shadow is faulted in for writing, by a huge page if the region's memory gets such, and the
 * bytes are copied there.  Another process that reads all of our memory may put pages into the
 * shadow first, which does no harm: the copy overwrites all of them.
 */
static int huge_from_shadow(struct freezer *fz, uintptr_t address, uintptr_t shadow, uint64_t n)
{
    if (!shadow || os_drop(shadow, n) < 0 || os_populate(shadow, n, true) < 0)
        return -ENOENT;
    os_populate(address, n, false); /* one call takes less time than a fault for each page */
    int error = freezer_copy(shadow, address, n);
    if (!error)
        error = freezer_replace(fz, address, shadow, n);
    if (error)
        os_drop(shadow, n);
    return error == -EFAULT ? -ENOENT : error;
}

static int from_stage(struct freezer *fz, uintptr_t address, uint64_t n, int vma_flags)
{
    int error = stage_need(fz);
    if (!error)
        error = os_populate(fz->stage, n, true);
    if (!error)
        error = freezer_copy(fz->stage, address, n);
    if (!error)
        error = freezer_replace(fz, address, fz->stage, n);
    if (error)
        return error;
    stage_slide(fz, n);
    os_set_vma_flags(address, n, vma_flags);
    return 0;
}

int stage_bring_back(struct freezer *fz, uintptr_t address, uint64_t n, uintptr_t shadow,
                     int vma_flags)
{
    if (n > FREEZE_MAX)
        return huge_from_shadow(fz, address, shadow, n);
    int error = shadow ? from_shadow(fz, address, shadow, n) : -ENOENT;
    return error == -ENOENT ? from_stage(fz, address, n, vma_flags) : error;
}
