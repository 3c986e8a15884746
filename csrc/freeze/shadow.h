/*
 * The shadow of a region: address space with its identity, which lends its pages to overlays that
 * become anonymous memory again.
 *
 * Two anonymous mappings become one only if their anon_vma is the same one and their offsets follow
 * each other.  What lies between two overlays gets an anon_vma of its own when it is touched, so
 * pages that come back one by one would stay apart.  Hence one page of the region is moved away,
 * whose mapping keeps its identity, grows, and lends its parts from then on.  The page goes back
 * where it came from.
 *
 *   region  | a | b | c | d |      a's mapping moves      | a |
 *   region  |   | b | c | d |      and grows              | a |   |   |   |   |
 *   region  | a | b | c | d |      the shadow             |   |   |   |   |   |
 *
 * It lies in step with the region (modulo a huge page), so that huge pages are moved as such.
 *
 * The page beyond is never lent: a mapping that is moved whole loses its identity to the new place.
 */
#ifndef KSMPY_FREEZE_SHADOW_H
#define KSMPY_FREEZE_SHADOW_H

#include <stdint.h>

/*
 * Address space for n pages and one more that has the identity of the page at address, which goes
 * away for it and comes back; or 0, if there is none to be had.  Whoever touches the page meanwhile
 * waits: fd is registered for missing pages there, and the caller wakes them.
 */
uintptr_t shadow_by_displacing(int fd, uintptr_t address, uint64_t n);
/* One with an identity of its own: what comes back is one mapping with itself, in any order. */
uintptr_t shadow_afresh(uintptr_t address, uint64_t n, int vma_flags);
/*
 * A shadow of n pages and one more, grown out of the one page at from, whose identity it has.  It
 * is for the address, which that page had; or 0.
 */
uintptr_t shadow_grow(uintptr_t from, uintptr_t address, uint64_t n);

#endif
