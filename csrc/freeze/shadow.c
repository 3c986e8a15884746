#include "freeze/shadow.h"

#include <errno.h>
#include <stdbool.h>

#include "base/pages.h"
#include "freeze/stage.h"
#include "os/clock.h"
#include "os/map.h"

/*
 * How often mremap is repeated, 50 us apart, before the page is copied instead: a refusal is
 * expected to pass within some milliseconds, and the region's owner may be waiting for the page.
 */
#define RETRIES 64

/*
 * Brings the region's page back to its address, from the shadow's page.  copied: by a copy from the
 * beginning, instead of by mremap.  The shadow's page is empty afterwards, as every page that the
 * shadow lends has to be.  false: it is a hole, as nothing can be mapped any more, and others may map theirs
 * there.
 */
static bool put_back(int fd, uintptr_t address, uintptr_t page, bool copied)
{
    int moved = -EAGAIN;
    for (int tries = 0; copied || (moved = os_move_memory(address, page, 1)) < 0; tries++) {
        int error = copied || tries > RETRIES ? stage_fill(fd, address, page, 1) : -EAGAIN;
        /* If the owner has unmapped the address for good, there is no place to bring it back to. */
        bool unmapped = error == -ENOENT && tries > 4 * RETRIES;
        if (error == 0 || unmapped) {
            os_drop(page, 1);
            return true;
        }
        os_sleep_us(50);
    }
    return moved != OS_MOVED_FOR_GOOD;
}

/*
 * Unmaps the page behind the shadow, which was mapped for this.  The kernel puts a new mapping
 * right below another one, which may be that of a region: a shadow of its own will need the page
 * below its start (freeze/borrow.c), so that is left free.
 */
static void leave_room(uintptr_t shadow, uint64_t n)
{
    os_unmap(page_at(shadow, n + 1), PAGE_SIZE);
}

uintptr_t shadow_grow(uintptr_t from, uintptr_t address, uint64_t n)
{
    uintptr_t shadow = os_grow(from, n + 2, address);
    if (shadow)
        leave_room(shadow, n);
    return shadow;
}

/*
 * One page is touched, so that all of the memory has one identity (an anon_vma) before parts of it
 * are lent.  The kernel may answer that touch with more pages than one, hence all are dropped.
 */
uintptr_t shadow_afresh(uintptr_t address, uint64_t n, int vma_flags)
{
    uintptr_t shadow = (uintptr_t)os_alloc_in_step(bytes_of(n + 2), address);
    if (!shadow)
        return 0;
    leave_room(shadow, n);
    os_set_vma_flags(shadow, n + 1, vma_flags);
    os_populate(shadow + bytes_of(n), 1, true);
    os_drop(shadow, n + 1);
    return shadow;
}

uintptr_t shadow_by_displacing(int fd, uintptr_t address, uint64_t n)
{
    uintptr_t page = (uintptr_t)os_reserve(PAGE_SIZE);
    if (!page || os_remap(page, address, 1, true))
        return 0; /* page stays: it may be unmapped by the failed mremap, and others' memory now */
    uintptr_t shadow = shadow_grow(page, address, n);
    /*
     * A mapping that is moved takes its rights along, and its owner may have protected the page
     * just before.  If the shadow cannot be written, the page is copied back, into whatever rights
     * the place has by now.  The shadow's second page is tried, because a write to the first would
     * turn a zero page into memory.
     */
    uintptr_t beside = shadow ? shadow + PAGE_SIZE : page;
    bool forbidden = os_populate(beside, 1, true) == -EINVAL;
    if (forbidden)
        os_protect(shadow ? shadow : page, shadow ? n + 1 : 1, true);
    if (shadow)
        os_drop(beside, 1);
    bool whole = put_back(fd, address, shadow ? shadow : page, forbidden);
    if (!shadow && whole)
        os_unmap((void *)page, PAGE_SIZE);
    return whole ? shadow : 0;
}
