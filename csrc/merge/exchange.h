/* One piece of a run: frozen, compared, and exchanged. */
#ifndef KSMPY_MERGE_EXCHANGE_H
#define KSMPY_MERGE_EXCHANGE_H

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

/* How many pages from `first` on are like it: all equal to their frames, or all different. */
uint64_t piece_same_length(const struct piece *piece, uint64_t first);
/*
 * Joins frames before anything is frozen: from then on no other process frees them, and if this one
 * dies everybody knows what it may have mapped.  Returns how many of the n were joined, the first
 * ones of them, or -errno.
 */
int64_t join_frames(struct pages *pages, uint32_t frame, uint64_t n);
/* Sets a piece up whose pages go onto frames in a row. */
void piece_begin(struct piece *piece, uint32_t page, uint32_t frame, uint64_t n);
/*
 * Exchanges as many of n pages, each of which has a frame, as can be exchanged at once.  Returns
 * how many it dealt with; a page that was refused has left its frame.  `joined` says that all of
 * their frames are joined already; if not, the frames are in a row.
 */
uint64_t merge_piece(struct merger *merger, struct piece *piece, uint64_t n, bool joined);

#endif
