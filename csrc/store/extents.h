/*
 * Extents: the places of huge pages in the store's file.
 *
 * Frames for a whole huge page of a region are made in an extent of their own, on a huge page where one
 * is to be had, so that they can be mapped as such.  To punch one frame out of it would split it for
 * everybody.  So a frame that is freed there keeps its memory, and is spare:
 *
 *   extent  | F | F |   | F | ... |     huge, one frame spare
 *
 * until it is taken again, the extent's last frame is freed, or more than one frame for
 * SPARE_SHARE in use is spare, or memory is scarce: then extents are let go, which
 * means that their spare frames are punched out and the rest are frames like others.
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
static inline bool is_in_huge_extent(const struct store *store, uint32_t frame)
{
    return frame_at(store, extent_of(frame))->huge;
}
uint64_t extent_used(const struct store *store, uint32_t extent); /* of its frames */
/* In use, on huge pages. */
static inline uint64_t huge_frames(const struct store *store)
{
    return store->head->huge_extents * EXTENT - store->head->spare_frames;
}

/* n frames are in use from now on, or are not any more. */
void extents_took(struct store *store, uint32_t first, uint64_t n);
void extents_gave(struct store *store, uint32_t first, uint64_t n);
/* It lies on a huge page, and all of it is in use; or it is one like others. */
void extent_becomes_huge(struct store *store, uint32_t extent);
void extent_becomes_plain(struct store *store, uint32_t extent);
/* More frames are spare than may be. */
bool too_many_spare(const struct store *store);
/* The counts, of what the records say. */
void extents_count(const struct store *store, uint64_t *huge, uint64_t *spare);

#endif
