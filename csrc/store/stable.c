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
#include "store/stable.h"

#include <errno.h>
#include <string.h>

#include "base/rbtree.h"
#include "os/arena.h"
#include "os/guard.h"
#include "store/layout.h"
#include "store/pool.h"
#include "store/store.h"

#define FIRST_TREES 64 /* of an empty store: 64 roots cost next to nothing */
/* How many splits ahead a tree's root is prefetched.  It has to be less than FIRST_TREES. */
#define PREFETCH 8

static struct rb_arena frame_arena(const struct store *store)
{
    return (struct rb_arena){.base = store->frames, .stride = sizeof(struct frame)};
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
    uint64_t below = level(forest->state->trees), tree = sum & (2 * below - 1);
    return tree < forest->state->trees ? tree : tree & (below - 1);
}

void stable_prefetch(const struct store *store, int tree, uint64_t sum)
{
    const struct forest *forest = &store->stable[tree];
    __builtin_prefetch(tree_at(forest, tree_for(forest, sum)), 1);
}

void stable_prefetch_root(const struct store *store, int tree, uint64_t sum)
{
    const struct forest *forest = &store->stable[tree];
    const struct rb_tree *home = tree_at(forest, tree_for(forest, sum));
    uint32_t root = __atomic_load_n(&home->root, __ATOMIC_RELAXED);
    if (root != RB_NONE)
        __builtin_prefetch(frame_at(store, root));
}

struct place {
    uint32_t found, parent;
    enum rb_side side;
};

/* Where a frame with these bytes is in the tree, or would be linked. */
static struct place descend(struct store *store, const struct rb_tree *tree, uint64_t sum,
                            const void *bytes)
{
    struct rb_arena arena = frame_arena(store);
    struct place place = {.found = NO_FRAME, .parent = RB_NONE, .side = RB_LEFT};
    uint32_t at = tree->root;
    while (at != RB_NONE) {
        int order = compare_u64(sum, frame_at(store, at)->sum);
        if (order == 0)
            order = compare_live(bytes, frame_bytes(store, at));
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

/* Is a frame that has room to be preferred to another? The fuller one, as in the kernel. */
static bool is_better(const struct store *store, uint32_t frame, uint32_t than)
{
    uint32_t sharers = frame_at(store, frame)->sharers, others = frame_at(store, than)->sharers;
    return sharers > others ||
           (sharers == others && frame < than); /* rows of frames are filled from their start on */
}

#define STEPS 32 /* frames of a chain looked at in one go: bounds what a lookup in it costs */

/* The best of STEPS frames of a chain from *at on, or NO_FRAME; *at: the one behind them. */
static uint32_t best_of(const struct store *store, uint32_t *at)
{
    uint32_t best = NO_FRAME;
    for (int step = 0; step < STEPS && *at != NO_FRAME;
         step++, *at = frame_at(store, *at)->dup_next)
        if (has_room(store, frame_at(store, *at)) &&
            (best == NO_FRAME || is_better(store, *at, best)))
            best = *at;
    return best;
}

/* Is the frame still in this chain, behind its head?  It may have been freed or reused since. */
static bool goes_on_at(const struct store *store, uint32_t head, uint32_t frame)
{
    return frame_is_live(store, frame) && frame_at(store, frame)->dup_prev != NO_FRAME &&
           frame_at(store, frame)->sum == frame_at(store, head)->sum &&
           frame_at(store, frame)->tree == frame_at(store, head)->tree;
}

/*
 * The frame of a chain that gets the next sharer.  It is looked for among the newest frames, which
 * follow the head and are most likely to have room, and then from where the last search has ended.
 * So a long chain of full frames costs little, and each of them is seen again before long.
 */
static uint32_t choose_dup(const struct store *store, uint32_t head)
{
    uint32_t at = head, best = head == NO_FRAME ? NO_FRAME : best_of(store, &at);
    if (best != NO_FRAME || at == NO_FRAME)
        return best;
    uint32_t *cursor = &frame_at(store, head)->left; /* the head has sharers, being full */
    at = goes_on_at(store, head, *cursor) ? *cursor : at;
    best = best_of(store, &at);
    *cursor = best == NO_FRAME ? at : best;
    return best;
}

/*
 * May the frame be taken without a look at its bytes, because its checksum fits?  Pages are
 * compared with their frames when they are frozen, so a wrong guess costs a merge and no byte.
 */
static bool suits(const struct store *store, uint32_t frame, int tree, uint64_t sum)
{
    if (!frame_is_live(store, frame))
        return false;
    const struct frame *record = frame_at(store, frame);
    return record->sum == sum && record->tree == tree && has_room(store, record);
}

static uint32_t find_head(struct store *store, int tree, uint64_t sum, const void *bytes)
{
    const struct forest *forest = &store->stable[tree];
    return descend(store, tree_at(forest, tree_for(forest, sum)), sum, bytes).found;
}

uint32_t stable_find(struct store *store, int tree, uint64_t sum, const void *bytes,
                     uint32_t preferred)
{
    if (suits(store, preferred, tree, sum))
        return preferred;
    return choose_dup(store, find_head(store, tree, sum, bytes));
}

bool stable_seems(const struct store *store, int tree, uint64_t sum, uint32_t preferred)
{
    return suits(store, preferred, tree, sum);
}

/* How many frames from the first on, at most max, suit one after the other. */
static uint64_t row_length(const struct store *store, uint32_t first, int tree, uint64_t sum,
                           uint64_t max)
{
    uint64_t length = 0;
    while (length < max && suits(store, first + (uint32_t)length, tree, sum))
        length++;
    return length;
}

/*
 * The start of the row that this frame, which has room, belongs to.  Rows are filled from their
 * start on, so all frames behind one that has room have room as well.  Steps that double, and then
 * halve, find the first of them.  If a row was filled otherwise, a shorter one is found.
 */
static uint32_t row_start(const struct store *store, uint32_t at, int tree, uint64_t sum)
{
    uint32_t step = 1;
    for (; step <= at && suits(store, at - step, tree, sum); step *= 2)
        at -= step;
    for (; step; step /= 2)
        if (step <= at && suits(store, at - step, tree, sum))
            at -= step;
    return at;
}

struct row {
    uint32_t first;
    uint64_t n;
};

/* The longest row, of at most max, among those of STEPS frames of the chain from *at on. */
static void longest_row(const struct store *store, uint32_t head, uint32_t *at, uint64_t max,
                        struct row *row)
{
    const struct frame *kind = frame_at(store, head);
    for (int step = 0; step < STEPS && *at != NO_FRAME && row->n < max;
         step++, *at = frame_at(store, *at)->dup_next) {
        if (*at - row->first < row->n || !suits(store, *at, kind->tree, kind->sum))
            continue;
        uint32_t first = row_start(store, *at, kind->tree, kind->sum);
        uint64_t length = row_length(store, first, kind->tree, kind->sum, max);
        if (length > row->n)
            *row = (struct row){first, length};
    }
}

/* Looks for a row where choose_dup() looks for one frame. */
static struct row row_in_chain(const struct store *store, uint32_t head, uint64_t max)
{
    struct row row = {NO_FRAME, 0};
    uint32_t at = head;
    if (head == NO_FRAME)
        return row;
    longest_row(store, head, &at, max, &row);
    if (row.n || at == NO_FRAME)
        return row;
    uint32_t *cursor = &frame_at(store, head)->left;
    at = goes_on_at(store, head, *cursor) ? *cursor : at;
    longest_row(store, head, &at, max, &row);
    *cursor = row.n ? row.first : at;
    return row;
}

uint32_t stable_find_row(struct store *store, int tree, uint64_t sum, const void *bytes,
                         uint32_t preferred, uint64_t *n)
{
    struct row row = {preferred, row_length(store, preferred, tree, sum, *n)};
    if (!row.n)
        row = row_in_chain(store, find_head(store, tree, sum, bytes), *n);
    *n = row.n;
    return row.n ? row.first : NO_FRAME;
}

uint64_t stable_count(struct store *store, int tree, uint64_t sum, const void *bytes, uint64_t max)
{
    uint64_t count = 0;
    uint32_t at = find_head(store, tree, sum, bytes);
    for (; at != NO_FRAME && count < max; at = frame_at(store, at)->dup_next)
        count++;
    return count;
}

bool stable_knows(const struct store *store, int tree, uint64_t sum)
{
    struct rb_arena arena = frame_arena(store);
    const struct forest *forest = &store->stable[tree];
    uint32_t at = tree_at(forest, tree_for(forest, sum))->root;
    while (at != RB_NONE) {
        int order = compare_u64(sum, frame_at(store, at)->sum);
        if (order == 0 && choose_dup(store, at) != NO_FRAME)
            return true;
        at = rb_child(rb_at(&arena, at), order < 0 ? RB_LEFT : RB_RIGHT);
    }
    return false;
}

static void chain_add(struct store *store, uint32_t head, uint32_t frame)
{
    struct frame *first = frame_at(store, head), *record = frame_at(store, frame);
    if (first->dup_next == NO_FRAME) {
        store->head->chains++;
        store->head->dups++;
    }
    store->head->dups++;
    record->dup_prev = head;
    record->dup_next = first->dup_next;
    if (first->dup_next != NO_FRAME)
        frame_at(store, first->dup_next)->dup_prev = frame;
    first->dup_next = frame;
}

/*
 * Adds a tree, and moves there what belongs to it by one more bit of the checksum.  By linear
 * hashing all of that is in one old tree.
 */
static void split_a_tree(struct store *store, struct forest *forest)
{
    struct rb_arena arena = frame_arena(store);
    if (arena_grow(&forest->roots, forest->state->trees + 1) < 0)
        return; /* without memory the trees become higher, which makes them slower, not wrong */
    struct rb_tree *old = tree_at(forest, forest->state->trees - level(forest->state->trees));
    struct rb_tree whole = *old, later = old[PREFETCH];
    if (later.root != RB_NONE)
        __builtin_prefetch(frame_at(store, later.root), 1);
    *tree_at(forest, forest->state->trees++) = *old = RB_EMPTY;
    for (uint32_t at; (at = rb_first(&arena, &whole)) != RB_NONE;) {
        struct rb_tree *to = tree_at(forest, tree_for(forest, frame_at(store, at)->sum));
        rb_erase(&arena, &whole, at);
        rb_link(&arena, to, at, rb_last(&arena, to), RB_RIGHT);
    }
}

void stable_add(struct store *store, uint32_t frame, int tree)
{
    struct frame *record = frame_at(store, frame);
    struct forest *forest = &store->stable[tree];
    struct rb_arena arena = frame_arena(store);
    struct rb_tree *home = tree_at(forest, tree_for(forest, record->sum));
    struct place place = descend(store, home, record->sum, frame_bytes(store, frame));
    record->tree = (uint8_t)tree;
    record->state = FRAME_LIVE;
    store->head->live_frames++;
    if (place.found != NO_FRAME) {
        chain_add(store, place.found, frame);
        return;
    }
    rb_link(&arena, home, frame, place.parent, place.side);
    if (++forest->state->heads > forest->state->trees)
        split_a_tree(store, forest);
}

static void chain_remove(struct store *store, uint32_t frame, struct rb_tree *home)
{
    struct frame *record = frame_at(store, frame);
    if (record->dup_prev == NO_FRAME) { /* the head: the next one takes its place in the tree */
        struct rb_arena arena = frame_arena(store);
        rb_replace(&arena, home, frame, record->dup_next);
    } else {
        frame_at(store, record->dup_prev)->dup_next = record->dup_next;
    }
    if (record->dup_next != NO_FRAME)
        frame_at(store, record->dup_next)->dup_prev = record->dup_prev;
}

void stable_remove(struct store *store, uint32_t frame)
{
    struct frame *record = frame_at(store, frame);
    struct forest *forest = &store->stable[record->tree];
    struct rb_tree *home = tree_at(forest, tree_for(forest, record->sum));
    bool alone = record->dup_prev == NO_FRAME && record->dup_next == NO_FRAME;
    if (alone) {
        struct rb_arena arena = frame_arena(store);
        rb_erase(&arena, home, frame);
        forest->state->heads--;
    } else {
        uint32_t rest = record->dup_prev == NO_FRAME ? record->dup_next : record->dup_prev;
        bool beside_head = rest == record->dup_next || frame_at(store, rest)->dup_prev == NO_FRAME;
        chain_remove(store, frame, home);
        store->head->dups--;
        if (beside_head && frame_at(store, rest)->dup_next == NO_FRAME) { /* it is alone now */
            store->head->chains--;
            store->head->dups--;
        }
    }
    record->dup_prev = record->dup_next = NO_FRAME;
    store->head->live_frames--;
}

int forest_init(struct forest *forest, uint64_t limit, struct forest_state *state)
{
    forest->state = state;
    int error = arena_init(&forest->roots, sizeof(struct rb_tree), limit);
    return error ? error : forest_clear(forest);
}

int forest_clear(struct forest *forest)
{
    int error = arena_grow(&forest->roots, FIRST_TREES);
    *forest->state = (struct forest_state){.trees = error ? 0 : FIRST_TREES};
    for (uint64_t i = 0; i < forest->state->trees; i++)
        *tree_at(forest, i) = RB_EMPTY;
    return error;
}

int64_t stable_visit_all(const struct store *store, int tree, stable_visit *visit, void *argument)
{
    struct rb_arena arena = frame_arena(store);
    const struct forest *forest = &store->stable[tree];
    uint32_t limit = (uint32_t)frame_limit(store);
    int64_t heads = 0;
    if (forest->state->trees < FIRST_TREES)
        return -EUCLEAN;
    for (uint64_t i = 0; i < forest->state->trees; i++) {
        int64_t count = rb_check(&arena, tree_at(forest, i), limit);
        if (count < 0)
            return count;
        heads += count;
        uint32_t at = rb_first(&arena, tree_at(forest, i));
        for (; at != RB_NONE; at = rb_next(&arena, at)) {
            if (tree_for(forest, frame_at(store, at)->sum) != i)
                return -EUCLEAN;
            visit(store, at, tree, argument);
        }
    }
    return heads == (int64_t)forest->state->heads ? heads : -EUCLEAN;
}
