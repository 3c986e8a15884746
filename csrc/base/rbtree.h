/*
 * Red-black tree, intrusive and index based: a node names its relatives by
 * their position in an array, so the same bytes are a valid tree wherever the
 * array happens to be mapped, in one process or in many.
 *
 *   array of elements, `stride` bytes apart; each holds a struct rb_node
 *
 *      base                base + stride       base + 2 * stride
 *      |                   |                   |
 *      +---------+---------+---------+---------+---------+---------+
 *      | rb_node | payload | rb_node | payload | rb_node | payload |  ...
 *      +---------+---------+---------+---------+---------+---------+
 *        index 0             index 1             index 2
 *
 *   the tree in it (here root = 1; B black, R red):
 *
 *                 1 B              node 1: left 0, right 2, parent none, black
 *                /   \             node 0: left none, right none, parent 1, red
 *             0 R     2 R          node 2: left none, right none, parent 1, red
 *
 * The tree knows nothing of the order.  The caller descends by itself, which
 * keeps comparisons inline and free of callbacks, and links at the leaf found:
 *
 *      uint32_t parent = RB_NONE, at = tree->root;
 *      enum rb_side side = RB_LEFT;
 *      while (at != RB_NONE) {
 *          parent = at;
 *          side = key_of(at) < key ? RB_RIGHT : RB_LEFT;
 *          at = rb_child(rb_at(arena, at), side);
 *      }
 *      rb_link(arena, tree, node, parent, side);
 *
 * Rules that hold between calls, and that rb_check() verifies:
 *   1. the root is black, and has no parent;
 *   2. a red node has no red child;
 *   3. every path from a node down to a missing child has as many black nodes;
 *   4. a node's children name it as their parent, and are not one and the same.
 * 2 and 3 bound the height to 2 * log2(count + 1).
 *
 * Nothing here allocates, fails or locks; the caller serialises changes.
 */
#ifndef KSMPY_RBTREE_H
#define KSMPY_RBTREE_H

#include <stddef.h>
#include <stdint.h>

#define RB_NONE UINT32_MAX /* no such node */
#define RB_MAX_NODES 0x7fffffffu /* usable indices are 0 to RB_MAX_NODES - 1 */

enum rb_side { RB_LEFT = 0, RB_RIGHT = 1 };
enum rb_color { RB_RED = 0, RB_BLACK = 1 };

struct rb_node {
    uint32_t left, right;  /* index or RB_NONE */
    uint32_t parent_color; /* parent's index << 1 | colour; RB_NONE's upper bits fall off */
};

struct rb_tree {
    uint32_t root; /* index or RB_NONE; RB_EMPTY is an empty tree */
};

#define RB_EMPTY ((struct rb_tree){RB_NONE})

/* Where the elements are. Cheap to make on the stack; processes differ in base only. */
struct rb_arena {
    void *base;    /* the rb_node of element 0 */
    size_t stride; /* from one element to the next; a multiple of 4 */
};

static inline struct rb_node *rb_at(const struct rb_arena *arena, uint32_t index)
{
    return (struct rb_node *)(void *)((char *)arena->base + arena->stride * index);
}

/* For descending: the order of two keys, below, equal to or above 0. */
static inline int compare_u64(uint64_t a, uint64_t b)
{
    return a < b ? -1 : a > b;
}

static inline uint32_t rb_parent(const struct rb_node *node)
{
    uint32_t parent = node->parent_color >> 1;

    return parent == RB_MAX_NODES ? RB_NONE : parent;
}

static inline enum rb_color rb_color(const struct rb_node *node)
{
    return (enum rb_color)(node->parent_color & 1);
}

static inline uint32_t rb_child(const struct rb_node *node, enum rb_side side)
{
    return side == RB_LEFT ? node->left : node->right;
}

/*
 * Makes node the child of parent on that side, where none may be, and restores
 * the rules.  parent is RB_NONE for the first node of an empty tree.
 */
void rb_link(const struct rb_arena *arena, struct rb_tree *tree, uint32_t node, uint32_t parent,
             enum rb_side side);

/* Takes node out of the tree it is in. No other element moves or is copied. */
void rb_erase(const struct rb_arena *arena, struct rb_tree *tree, uint32_t node);

/* Puts substitute, which is in no tree, in the place of node. Their keys must be equal in order. */
void rb_replace(const struct rb_arena *arena, struct rb_tree *tree, uint32_t node,
                uint32_t substitute);

/* In order: the first, the last, the one after, the one before; RB_NONE at the end. */
uint32_t rb_first(const struct rb_arena *arena, const struct rb_tree *tree);
uint32_t rb_last(const struct rb_arena *arena, const struct rb_tree *tree);
uint32_t rb_next(const struct rb_arena *arena, uint32_t node);
uint32_t rb_prev(const struct rb_arena *arena, uint32_t node);

/*
 * How many nodes the tree has, or -EUCLEAN when it breaks a rule, names an
 * index not below limit (how many elements the arena has), or has a cycle.
 * Safe on any bytes.
 */
int64_t rb_check(const struct rb_arena *arena, const struct rb_tree *tree, uint32_t limit);

#endif
