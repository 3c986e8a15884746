#include "freeze/shadow.h"

#include <errno.h>
#include <stdbool.h>

#include "base/pages.h"
#include "freeze/stage.h"
#include "os/clock.h"
#include "os/map.h"

#define RETRIES 64 /* of a transient refusal, 50 us apart, before the page is copied */

/* A copy may be made; what is lent later has to be empty. */
static void put_back(int fd, uintptr_t address, uintptr_t page, bool copied)
{
    for (int tries = 0; copied || os_remap(address, page, 1, true); tries++) {
        int error = copied || tries > RETRIES ? stage_fill(fd, address, page, 1) : -EAGAIN;
        bool unmapped =
            error == -ENOENT && tries > 4 * RETRIES; /* there is nothing to give it to */
        if (error == 0 || unmapped) {
            os_drop(page, 1);
            return;
        }
        os_sleep_us(50);
    }
}

/*
 * The kernel likes to put new mappings right below others, and a page below a region's mapping is
 * what its shadow needs: so one page more was mapped, and is left free.
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
 * One page of it is touched, for an identity that is the same everywhere in it.  Whoever fills
 * that page may be given more.
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
        return 0; /* a failed mremap may have unmapped its target, which may be another's by now */
    uintptr_t shadow = shadow_grow(page, address, n);
    /*
     * A mapping takes its rights along, which its owner may have given back meanwhile.  A page of
     * the shadow is asked, as the one in it is not to be touched: it may be the zero page.
     */
    uintptr_t beside = shadow ? shadow + PAGE_SIZE : page;
    bool forbidden = os_populate(beside, 1, true) == -EINVAL;
    if (forbidden)
        os_protect(shadow ? shadow : page, shadow ? n + 1 : 1, true);
    if (shadow)
        os_drop(beside, 1);
    put_back(fd, address, shadow ? shadow : page, forbidden);
    if (!shadow)
        os_unmap((void *)page, PAGE_SIZE);
    return shadow;
}
