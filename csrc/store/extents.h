/*
 * Extents: the places of huge pages in the store's file.
 *
 * Frames for a whole huge page of a region are made in an extent of their own, on a huge page where one
 * is to be had, so that they can be mapped as such.  There the end of a frame is not the end of its page.
 * A page that nobody maps any more may still be read through a reference to it (of a pipe after
 * vmsplice(), of a socket after MSG_ZEROCOPY, of a write around the page cache, of process_vm_readv()),
 * and has to keep its bytes for that.  A page of its own does so when it is punched out of the file.  Of
 * a larger folio, the kernel clears the part that is punched, where it is.  So a frame that is freed
 * there is spare: it keeps its memory, and is not taken again,
 *
 *   extent  | F | F |   | F | ... |     huge, one frame spare
 *
 * until nobody uses the extent, which is punched as a whole then, or it is let go, since more than one
 * frame for SPARE_SHARE in use is spare, or memory is scarce: once it is proven that nobody has a
 * reference to what is spare (store/references.h), that is punched.  What is left of the folio is torn:
 * it lies in pieces of unknown sizes.
 *
 *   extent  | F | F | - | F | ... |     torn
 *
 * With the lock held, where nothing else is said.
 */
#ifndef KSMPY_STORE_EXTENTS_H
#define KSMPY_STORE_EXTENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/pages.h"
#include "store/layout.h"
#include "store/store.h"

#define EXTENT ((uint32_t)HUGE_PAGES) /* frames */
#define SPARE_SHARE 8

static inline uint32_t extent_of(uint32_t frame)
{
    return frame & ~(EXTENT - 1);
}
/* Also without the lock, of a frame that is in use. */
static inline bool is_on_huge_page(const struct store *store, uint32_t frame)
{
    return is_huge(frame_at(store, extent_of(frame))->extent);
}
/* Can its page be a part of a larger folio? Also without the lock, of a frame that is in use. */
static inline bool is_on_large_folio(const struct store *store, uint32_t frame)
{
    return frame_at(store, extent_of(frame))->extent & EXTENT_LARGE;
}
static inline uint64_t extent_spare(const struct store *store, uint32_t extent)
{
    return frame_at(store, extent)->extent & EXTENT_SPARE;
}
/* All extents with known frames, from 0 on, whatever their node: how many there are, and each of them. */
uint64_t extents_known(const struct store *store);
uint32_t extent_at(const struct store *store, uint64_t number);
/* How many of its frames are neither free nor spare. */
uint64_t extent_used(const struct store *store, uint32_t extent);
/* In use, on huge pages. */
static inline uint64_t huge_frames(const struct store *store)
{
    const struct store_head *head = store->head;
    return head->huge_extents * EXTENT - (head->spare_frames - head->torn_spare_frames);
}

/* Frames are in use from now on. */
void extents_took(struct store *store, uint32_t first, uint64_t n);
/* So many neighbours have no memory any more: whole extents among them are plain again. */
void extents_gave(struct store *store, uint32_t first, uint64_t n);
/* A frame that is in use becomes spare; or it was spare, and has another state now. */
void frame_becomes_spare(struct store *store, uint32_t frame);
void frame_is_spare_no_more(struct store *store, uint32_t frame);
/* It lies on a huge page; in pieces of one, or of folios that nobody asked for; on pages of their own. */
void extent_becomes_huge(struct store *store, uint32_t extent);
void extent_is_torn(struct store *store, uint32_t extent);
void extent_becomes_plain(struct store *store, uint32_t extent);
/* Also without the lock; none where the store is the parent's, whose memory this process has no part in. */
uint64_t store_spare_frames(const struct store *store);
/* More frames are spare than may be. */
bool too_many_spare(const struct store *store);

/* The counts, of what the states of the frames say. */
struct extents_seen {
    uint64_t huge, spare, torn_spare, wrong; /* extents of which the record says something else */
};
struct extents_seen extents_count(const struct store *store);
/* Has the counts say the same. */
void extents_recount(struct store *store);

#endif
