/*
 * Slots: who may map frames, and how many each process counts.  A slot is held by a lock on its byte
 * of the lock file.
 */
#ifndef KSMPY_STORE_SLOTS_H
#define KSMPY_STORE_SLOTS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/pages.h"
#include "store/layout.h"
#include "store/store.h"

/*
 * Takes a free slot, and the lease by which others see that this process lives.  -EUSERS: no slot is
 * free; -EBADF: the program has closed the store's files; or as os_lease_take().
 */
KSMPY_MAY_REFUSE int slot_claim(struct store *store, enum slot_kind kind, unsigned *slot,
                                void **lease);
bool slot_is_held(const struct store *store, unsigned slot);
bool slots_are_held(const struct store *store); /* any */
/* From now on children that come hold this process's slot, too, which is held until they are gone. */
void store_bequeath(const struct store *store);
/* Those that come from now on do not. */
void store_disinherit(const struct store *store);
/* In a forked child: says in its slot who it is. */
void slot_sign(const struct store *store);
/* The child of that fork got no slot, and holds ours: what it maps must outlast us. */
void slots_lose(struct store *store, uint32_t fork);
/*
 * May a forked child still map the frame, or is it pinned?  Then it is not to be freed.  A child that
 * has died counts until slots_reap() has noticed it.
 */
bool store_leased(const struct store *store, const struct frame *frame);

/* Where the sharers of a slot are counted, in the file: uint32_t for each frame. */
uint64_t counts_offset(const struct store *store, unsigned slot);
uint64_t counts_bytes(const struct store *store);

typedef void visit_count(struct store *store, uint32_t frame, uint32_t count);
/*
 * The counts that a slot has in the file, which gets no memory by that.  After an error (-errno) some
 * of them have been visited.
 */
int each_count(struct store *store, unsigned slot, visit_count *visit);
void clear_counts(const struct store *store, unsigned slot);

#endif
