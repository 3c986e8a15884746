/*
 * The stable trees: which frame has these bytes?
 *
 * Each is a red-black tree ordered by checksum and then bytes, with its top
 * cut off: an array does what the upper levels would do, each of which is a
 * cache miss.  Below each of its places hangs a tree of about one frame, or of
 * many if somebody makes checksums collide; what is equal the trees decide.
 * Frames with equal bytes, of which a tree has room for one, form a chain.
 *
 * The array grows by linear hashing (Litwin, 1980): with each frame that is
 * added one tree is split in two, so that nobody ever waits for a big step.
 *
 *   trees = 6   | 0 | 1 | 2 | 3 | 4 | 5 |     a checksum's last 3 bits name its tree
 *                 ^split  ^next   ^from 0     if there is such a tree, else its last 2
 */
#include "engine.h"

#include <errno.h>
#include <string.h>

#define FIRST_TREES 64
#define PREFETCH 8 /* splits ahead; always below the number of trees */

static struct rb_arena frame_arena(const ksmpy_engine *engine)
{
    return (struct rb_arena){.base = engine->store.frames, .stride = sizeof(struct frame)};
}

static struct rb_tree *tree_at(const struct forest *forest, uint64_t tree)
{
    return arena_at(&forest->roots, tree);
}

/* The largest power of two that is not above the number of trees. */
static uint64_t level(uint64_t trees)
{
    return (uint64_t)1 << (63 - __builtin_clzll(trees));
}

static uint64_t tree_for(const struct forest *forest, uint64_t sum)
{
    uint64_t below = level(forest->trees), tree = sum & (2 * below - 1);
    return tree < forest->trees ? tree : tree & (below - 1);
}

void stable_prefetch(const ksmpy_engine *engine, int tree, uint64_t sum)
{
    const struct forest *forest = &engine->stable[tree];
    __builtin_prefetch(tree_at(forest, tree_for(forest, sum)), 1);
}

struct place {
    uint32_t found, parent;
    enum rb_side side;
};

/* Where a frame with these bytes is in the tree, or would be linked. */
static struct place descend(const ksmpy_engine *engine, const struct rb_tree *tree, uint64_t sum,
                            const void *bytes)
{
    struct rb_arena arena = frame_arena(engine);
    struct place place = {.found = NO_FRAME, .parent = RB_NONE, .side = RB_LEFT};
    uint32_t at = tree->root;
    while (at != RB_NONE) {
        uint64_t other = frame_at(&engine->store, at)->sum;
        int order = sum < other   ? -1
                    : sum > other ? 1
                                  : compare_live(bytes, frame_bytes(&engine->store, at));
        if (order == 0) {
            place.found = at;
            return place;
        }
        place.parent = at;
        place.side = order < 0 ? RB_LEFT : RB_RIGHT;
        at = rb_child(rb_at(&arena, at), place.side);
    }
    return place;
}

/* Of a chain: the fullest frame that has room, as the kernel does. */
static uint32_t choose_dup(const ksmpy_engine *engine, uint32_t head)
{
    uint64_t limit = engine->knobs[KSMPY_KNOB_MAX_PAGE_SHARING];
    uint32_t best = NO_FRAME;
    for (uint32_t at = head; at != NO_FRAME; at = frame_at(&engine->store, at)->dup_next) {
        const struct frame *frame = frame_at(&engine->store, at);
        if (frame->sharers >= limit)
            continue;
        if (best == NO_FRAME || frame->sharers > frame_at(&engine->store, best)->sharers)
            best = at;
    }
    return best;
}

/* The frozen comparison decides; a frame that makes a run longer is taken at its checksum's word. */
static bool suits(const ksmpy_engine *engine, uint32_t frame, int tree, uint64_t sum)
{
    if (!frame_is_live(engine, frame))
        return false;
    const struct frame *record = frame_at(&engine->store, frame);
    return record->sum == sum && record->tree == tree &&
           record->sharers < engine->knobs[KSMPY_KNOB_MAX_PAGE_SHARING];
}

uint32_t stable_find(ksmpy_engine *engine, int tree, uint64_t sum, const void *bytes,
                     uint32_t preferred)
{
    if (suits(engine, preferred, tree, sum))
        return preferred;
    const struct forest *forest = &engine->stable[tree];
    struct place place = descend(engine, tree_at(forest, tree_for(forest, sum)), sum, bytes);
    return place.found == NO_FRAME ? NO_FRAME : choose_dup(engine, place.found);
}

static void chain_add(ksmpy_engine *engine, uint32_t head, uint32_t frame)
{
    struct frame *first = frame_at(&engine->store, head), *record = frame_at(&engine->store, frame);
    if (first->dup_next == NO_FRAME) {
        engine->chains++;
        engine->dups++;
    }
    engine->dups++;
    record->dup_prev = head;
    record->dup_next = first->dup_next;
    if (first->dup_next != NO_FRAME)
        frame_at(&engine->store, first->dup_next)->dup_prev = frame;
    first->dup_next = frame;
}

/* The next tree whose turn it is gives those that belong there to a new one. */
static void split_a_tree(ksmpy_engine *engine, struct forest *forest)
{
    struct rb_arena arena = frame_arena(engine);
    if (arena_grow(&forest->roots, forest->trees + 1) < 0)
        return; /* higher trees are slower, not wrong */
    struct rb_tree *old = tree_at(forest, forest->trees - level(forest->trees));
    struct rb_tree whole = *old, later = old[PREFETCH];
    if (later.root != RB_NONE)
        __builtin_prefetch(frame_at(&engine->store, later.root), 1);
    *tree_at(forest, forest->trees++) = *old = RB_EMPTY;
    for (uint32_t at; (at = rb_first(&arena, &whole)) != RB_NONE;) {
        struct rb_tree *to = tree_at(forest, tree_for(forest, frame_at(&engine->store, at)->sum));
        rb_erase(&arena, &whole, at);
        rb_link(&arena, to, at, rb_last(&arena, to), RB_RIGHT);
    }
}

void stable_add(ksmpy_engine *engine, uint32_t frame, int tree)
{
    struct frame *record = frame_at(&engine->store, frame);
    struct forest *forest = &engine->stable[tree];
    struct rb_arena arena = frame_arena(engine);
    struct rb_tree *home = tree_at(forest, tree_for(forest, record->sum));
    struct place place = descend(engine, home, record->sum, frame_bytes(&engine->store, frame));
    record->tree = (uint8_t)tree;
    record->live = 1;
    engine->live_frames++;
    if (place.found != NO_FRAME) {
        chain_add(engine, place.found, frame);
        return;
    }
    rb_link(&arena, home, frame, place.parent, place.side);
    if (++forest->heads > forest->trees)
        split_a_tree(engine, forest);
}

static void chain_remove(ksmpy_engine *engine, uint32_t frame, struct rb_tree *home)
{
    struct frame *record = frame_at(&engine->store, frame);
    if (record->dup_prev == NO_FRAME) { /* the head: the next one takes its place in the tree */
        struct rb_arena arena = frame_arena(engine);
        rb_replace(&arena, home, frame, record->dup_next);
    } else {
        frame_at(&engine->store, record->dup_prev)->dup_next = record->dup_next;
    }
    if (record->dup_next != NO_FRAME)
        frame_at(&engine->store, record->dup_next)->dup_prev = record->dup_prev;
}

static uint32_t chain_head(const ksmpy_engine *engine, uint32_t frame)
{
    while (frame_at(&engine->store, frame)->dup_prev != NO_FRAME)
        frame = frame_at(&engine->store, frame)->dup_prev;
    return frame;
}

void stable_remove(ksmpy_engine *engine, uint32_t frame)
{
    struct frame *record = frame_at(&engine->store, frame);
    struct forest *forest = &engine->stable[record->tree];
    struct rb_tree *home = tree_at(forest, tree_for(forest, record->sum));
    bool alone = record->dup_prev == NO_FRAME && record->dup_next == NO_FRAME;
    if (alone) {
        struct rb_arena arena = frame_arena(engine);
        rb_erase(&arena, home, frame);
        forest->heads--;
    } else {
        uint32_t head = chain_head(engine, frame);
        uint32_t rest = head == frame ? record->dup_next : head;
        chain_remove(engine, frame, home);
        engine->dups--;
        if (frame_at(&engine->store, rest)->dup_next == NO_FRAME) {
            engine->chains--;
            engine->dups--;
        }
    }
    record->live = 0;
    record->dup_prev = record->dup_next = NO_FRAME;
    engine->live_frames--;
}

int stable_init(ksmpy_engine *engine)
{
    uint64_t limit = engine->pages.limit; /* no more frames than pages */
    for (int i = 0; i < engine->nodes; i++) {
        struct forest *forest = &engine->stable[i];
        int error = arena_init(&forest->roots, sizeof(struct rb_tree), limit);
        if (!error)
            error = arena_grow(&forest->roots, FIRST_TREES);
        if (error)
            return error;
        while (forest->trees < FIRST_TREES)
            *tree_at(forest, forest->trees++) = RB_EMPTY;
    }
    return 0;
}

void stable_destroy(ksmpy_engine *engine)
{
    for (int i = 0; i < engine->nodes; i++)
        arena_destroy(&engine->stable[i].roots);
}

uint64_t stable_metadata_bytes(const ksmpy_engine *engine)
{
    uint64_t bytes = 0;
    for (int i = 0; i < engine->nodes; i++)
        bytes += engine->stable[i].roots.committed * sizeof(struct rb_tree);
    return bytes;
}

/* ---- for check.c ---- */

int64_t stable_walk(const ksmpy_engine *engine, int tree, stable_visit *visit, void *argument)
{
    struct rb_arena arena = frame_arena(engine);
    const struct forest *forest = &engine->stable[tree];
    uint32_t limit = (uint32_t)engine->store.nodes << engine->store.span_shift;
    int64_t heads = 0;
    for (uint64_t i = 0; i < forest->trees; i++) {
        int64_t count = rb_check(&arena, tree_at(forest, i), limit);
        if (count < 0)
            return count;
        heads += count;
        uint32_t at = rb_first(&arena, tree_at(forest, i));
        for (; at != RB_NONE; at = rb_next(&arena, at)) {
            if (tree_for(forest, frame_at(&engine->store, at)->sum) != i)
                return -EUCLEAN;
            visit(engine, at, tree, argument);
        }
    }
    return heads == (int64_t)forest->heads ? heads : -EUCLEAN;
}
