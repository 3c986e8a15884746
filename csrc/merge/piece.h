/* One piece of a run: frozen, compared, and exchanged. */
#ifndef KSMPY_MERGE_PIECE_H
#define KSMPY_MERGE_PIECE_H

#include "freeze/freezer.h"
#include "merge/merger.h"

/* What became of one piece: which of its pages lie on their frames now. */
struct piece {
    uint32_t page;
    uint64_t n;
    uint32_t frames[FREEZE_HUGE];
    bool equal[FREEZE_HUGE];
    bool mapped[FREEZE_HUGE];
};

/* How many pages from that one on are equal to their frames, if it is; or else are not. */
uint64_t piece_same_length(const struct piece *piece, uint64_t first);
/*
 * Frames are joined before anything is frozen: from then on no other process frees them, and
 * if this one dies everybody knows what it may have mapped.  How many leading
 * ones of the n were, or -errno.
 */
int64_t join_frames(struct pages *pages, uint32_t frame, uint64_t n);
/* Of pages that go onto frames in a row. */
void piece_begin(struct piece *piece, uint32_t page, uint32_t frame, uint64_t n);
/*
 * Of n pages, each of which has a frame, as many as can be exchanged at once; returns how many it
 * dealt with, mapped or refused, each of which has left its frame if it does not lie on it.  joined:
 * all of their frames are; or else they are in a row.
 */
uint64_t merge_piece(struct merger *merger, struct piece *piece, uint64_t n, bool joined);

#endif
