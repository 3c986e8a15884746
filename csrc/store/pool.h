/*
 * Which frames are in use, with the lock held, and which wait for their memory to be given back.
 */
#ifndef KSMPY_STORE_POOL_H
#define KSMPY_STORE_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "store/store.h"

/* Up to *n consecutive ones, which are FILLING then; *n says how many. NO_FRAME: out of them. */
uint32_t pool_take(struct store *store, int node, uint64_t *n);
/* The same of whole extents. */
uint32_t pool_take_extents(struct store *store, int node, uint64_t *n);
/* This one, which is free; false: there is none of that number. */
bool pool_take_this(struct store *store, uint32_t frame);
/* Nothing is there, or was there yet. */
void pool_give(struct store *store, uint32_t first, uint64_t n);
void store_free(struct store *store, uint32_t frame);
/* Of any number: freed frames may have no record behind them. */
bool frame_is_live(const struct store *store, uint32_t frame);
uint64_t store_bytes(const struct store *store); /* that frames have, or spare ones */
uint64_t store_metadata_bytes(const struct store *store);

#endif
