/*
 * The stable trees: which frame has these bytes?  All with the lock held, but for stable_seems() and
 * what prefetches.
 */
#ifndef KSMPY_STORE_STABLE_H
#define KSMPY_STORE_STABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "store/layout.h"
#include "store/store.h"

int forest_init(struct forest *forest, uint64_t limit, struct forest_state *state);
int forest_clear(struct forest *forest); /* -ENOMEM, -ENOSPC: it has no trees at all yet */
/*
 * The frame with these bytes that has room for a sharer, or NO_FRAME. The preferred one is taken
 * if it has their checksum.
 */
uint32_t stable_find(struct store *store, int tree, uint64_t sum, const void *bytes,
                     uint32_t preferred);
/*
 * Would stable_find() take the preferred one?  Without the lock, as a guess: others may change the
 * record just then, and who joins the frame finds that, or at last who compares the bytes.  Records
 * below a high mark have memory, whatever becomes of them.
 */
bool stable_seems(const struct store *store, int tree, uint64_t sum, uint32_t preferred);
/*
 * Frames with these bytes that follow each other and have room for a sharer each: the first of
 * them, in *n how many, of at most *n; or NO_FRAME.  Those that begin with the preferred one are
 * taken if it has their checksum, and else the longest row that a bounded look at equal frames finds.
 */
uint32_t stable_find_row(struct store *store, int tree, uint64_t sum, const void *bytes,
                         uint32_t preferred, uint64_t *n);
/* How many frames have these bytes, of at most max? */
uint64_t stable_count(struct store *store, int tree, uint64_t sum, const void *bytes, uint64_t max);
/* Is there a frame with this checksum that has room? */
bool stable_knows(const struct store *store, int tree, uint64_t sum);
/* The checksum will be asked for soon. */
void stable_prefetch(const struct store *store, int tree, uint64_t sum);
/* The same, some time after that: the frame at the root of its tree. */
void stable_prefetch_root(const struct store *store, int tree, uint64_t sum);
void stable_add(struct store *store, uint32_t frame, int tree);
void stable_remove(struct store *store, uint32_t frame);

/* Visits the head of each chain; how many there are, or -EUCLEAN. */
typedef void stable_visit(const struct store *store, uint32_t head, int tree, void *argument);
int64_t stable_visit_all(const struct store *store, int tree, stable_visit *visit, void *argument);

#endif
