#include "base/rbtree.h"

#include <errno.h>

static enum rb_side opposite(enum rb_side side)
{
    return side == RB_LEFT ? RB_RIGHT : RB_LEFT;
}

static void set_parent(struct rb_node *node, uint32_t parent)
{
    node->parent_color = parent << 1 | (node->parent_color & 1);
}

static void set_color(struct rb_node *node, enum rb_color color)
{
    node->parent_color = (node->parent_color & ~1u) | color;
}

static void set_child(struct rb_node *node, enum rb_side side, uint32_t child)
{
    if (side == RB_LEFT)
        node->left = child;
    else
        node->right = child;
}

/* A missing child counts as black. */
static int is_red(const struct rb_arena *arena, uint32_t node)
{
    return node != RB_NONE && rb_color(rb_at(arena, node)) == RB_RED;
}

static enum rb_side side_of(const struct rb_arena *arena, uint32_t parent, uint32_t node)
{
    return rb_at(arena, parent)->left == node ? RB_LEFT : RB_RIGHT;
}

/* Whoever pointed down at `old` points at `new` instead; new (if any) points back up. */
static void transplant(const struct rb_arena *arena, struct rb_tree *tree, uint32_t old,
                       uint32_t new)
{
    uint32_t parent = rb_parent(rb_at(arena, old));

    if (parent == RB_NONE)
        tree->root = new;
    else
        set_child(rb_at(arena, parent), side_of(arena, parent, old), new);
    if (new != RB_NONE)
        set_parent(rb_at(arena, new), parent);
}

/*
 * Turns node down to `side`; its child of the other side takes its place.
 *
 *        node                pivot
 *       /    \      left    /     \
 *      a    pivot   --->  node     c
 *           /   \         /  \
 *          b     c       a    b
 */
static void rotate(const struct rb_arena *arena, struct rb_tree *tree, uint32_t node,
                   enum rb_side side)
{
    struct rb_node *down = rb_at(arena, node);
    uint32_t pivot = rb_child(down, opposite(side));
    struct rb_node *up = rb_at(arena, pivot);
    uint32_t inner = rb_child(up, side);

    transplant(arena, tree, node, pivot);
    set_child(up, side, node);
    set_parent(down, pivot);
    set_child(down, opposite(side), inner);
    if (inner != RB_NONE)
        set_parent(rb_at(arena, inner), node);
}

/* Node and its parent are both red: recolour upwards, at most two rotations end it. */
static void repair_red_pair(const struct rb_arena *arena, struct rb_tree *tree, uint32_t node)
{
    uint32_t parent;

    while ((parent = rb_parent(rb_at(arena, node))) != RB_NONE && is_red(arena, parent)) {
        uint32_t grandparent = rb_parent(rb_at(arena, parent)); /* a red node is no root */
        enum rb_side side = side_of(arena, grandparent, parent);
        uint32_t uncle = rb_child(rb_at(arena, grandparent), opposite(side));

        set_color(rb_at(arena, grandparent), RB_RED);
        if (is_red(arena, uncle)) {
            set_color(rb_at(arena, parent), RB_BLACK);
            set_color(rb_at(arena, uncle), RB_BLACK);
            node = grandparent;
            continue;
        }
        if (side_of(arena, parent, node) != side) {
            rotate(arena, tree, parent, side);
            parent = node;
        }
        set_color(rb_at(arena, parent), RB_BLACK);
        rotate(arena, tree, grandparent, opposite(side));
        break;
    }
    set_color(rb_at(arena, tree->root), RB_BLACK);
}

/*
 * Paths through node (which may be RB_NONE) below parent are one black short.
 * The sibling is always there: its side has at least one black more.
 */
static void repair_short_side(const struct rb_arena *arena, struct rb_tree *tree, uint32_t node,
                              uint32_t parent)
{
    while (parent != RB_NONE && !is_red(arena, node)) {
        enum rb_side side = side_of(arena, parent, node), far = opposite(side);
        uint32_t sibling = rb_child(rb_at(arena, parent), far);

        if (is_red(arena, sibling)) {
            set_color(rb_at(arena, sibling), RB_BLACK);
            set_color(rb_at(arena, parent), RB_RED);
            rotate(arena, tree, parent, side);
            sibling = rb_child(rb_at(arena, parent), far);
        }
        if (!is_red(arena, rb_child(rb_at(arena, sibling), far))) {
            uint32_t near = rb_child(rb_at(arena, sibling), side);

            set_color(rb_at(arena, sibling), RB_RED);
            if (!is_red(arena, near)) { /* now both sides are short: pass it on */
                node = parent;
                parent = rb_parent(rb_at(arena, node));
                continue;
            }
            rotate(arena, tree, sibling, far);
            sibling = near;
        }
        set_color(rb_at(arena, sibling), rb_color(rb_at(arena, parent)));
        set_color(rb_at(arena, parent), RB_BLACK);
        set_color(rb_at(arena, rb_child(rb_at(arena, sibling), far)), RB_BLACK);
        rotate(arena, tree, parent, side);
        return;
    }
    if (node != RB_NONE)
        set_color(rb_at(arena, node), RB_BLACK);
}

static uint32_t outermost(const struct rb_arena *arena, uint32_t node, enum rb_side side)
{
    uint32_t last = RB_NONE;

    for (; node != RB_NONE; node = rb_child(rb_at(arena, node), side))
        last = node;
    return last;
}

static uint32_t neighbour(const struct rb_arena *arena, uint32_t node, enum rb_side side)
{
    uint32_t child = rb_child(rb_at(arena, node), side), parent;

    if (child != RB_NONE)
        return outermost(arena, child, opposite(side));
    while ((parent = rb_parent(rb_at(arena, node))) != RB_NONE &&
           side_of(arena, parent, node) == side)
        node = parent;
    return parent;
}

/* What rb_check carries along. */
struct traversal {
    const struct rb_arena *arena;
    uint32_t limit;
    int64_t count;
};

/* A sound tree of 2^31 nodes is no higher; it also bounds the recursion on a broken one. */
enum { MAX_HEIGHT = 62 };

/* The black height of the subtree, or -1 when it breaks a rule. */
static int check_subtree(struct traversal *traversal, uint32_t node, uint32_t parent, int depth)
{
    const struct rb_node *at;
    int left, right;

    if (node == RB_NONE)
        return 0;
    if (node >= traversal->limit || depth > MAX_HEIGHT || ++traversal->count > traversal->limit)
        return -1;
    at = rb_at(traversal->arena, node);
    if (rb_parent(at) != parent)
        return -1;
    if (at->left == at->right && at->left != RB_NONE) /* rb_next() would go round in it */
        return -1;
    if (rb_color(at) == RB_RED && (parent == RB_NONE || is_red(traversal->arena, parent)))
        return -1;
    left = check_subtree(traversal, at->left, node, depth + 1);
    right = left < 0 ? -1 : check_subtree(traversal, at->right, node, depth + 1);
    if (right < 0 || left != right)
        return -1;
    return left + (rb_color(at) == RB_BLACK);
}

void rb_link(const struct rb_arena *arena, struct rb_tree *tree, uint32_t node, uint32_t parent,
             enum rb_side side)
{
    *rb_at(arena, node) = (struct rb_node){RB_NONE, RB_NONE, parent << 1 | RB_RED};
    if (parent == RB_NONE)
        tree->root = node;
    else
        set_child(rb_at(arena, parent), side, node);
    repair_red_pair(arena, tree, node);
}

void rb_erase(const struct rb_arena *arena, struct rb_tree *tree, uint32_t node)
{
    const struct rb_node *gone = rb_at(arena, node);
    enum rb_color lost = rb_color(gone);
    uint32_t filler, parent = rb_parent(gone);

    if (gone->left == RB_NONE || gone->right == RB_NONE) {
        filler = gone->left == RB_NONE ? gone->right : gone->left;
        transplant(arena, tree, node, filler);
    } else { /* the successor has no left child, and takes over node's place and colour */
        uint32_t heir = outermost(arena, gone->right, RB_LEFT);

        lost = rb_color(rb_at(arena, heir));
        filler = rb_at(arena, heir)->right;
        parent = rb_parent(rb_at(arena, heir));
        transplant(arena, tree, heir, filler);
        if (parent == node)
            parent = heir;
        rb_replace(arena, tree, node, heir);
    }
    if (lost == RB_BLACK)
        repair_short_side(arena, tree, filler, parent);
}

void rb_replace(const struct rb_arena *arena, struct rb_tree *tree, uint32_t node,
                uint32_t substitute)
{
    const struct rb_node *old = rb_at(arena, node);

    transplant(arena, tree, node, substitute);
    *rb_at(arena, substitute) = *old;
    if (old->left != RB_NONE)
        set_parent(rb_at(arena, old->left), substitute);
    if (old->right != RB_NONE)
        set_parent(rb_at(arena, old->right), substitute);
}

uint32_t rb_first(const struct rb_arena *arena, const struct rb_tree *tree)
{
    return outermost(arena, tree->root, RB_LEFT);
}

uint32_t rb_last(const struct rb_arena *arena, const struct rb_tree *tree)
{
    return outermost(arena, tree->root, RB_RIGHT);
}

uint32_t rb_next(const struct rb_arena *arena, uint32_t node)
{
    return neighbour(arena, node, RB_RIGHT);
}

uint32_t rb_prev(const struct rb_arena *arena, uint32_t node)
{
    return neighbour(arena, node, RB_LEFT);
}

int64_t rb_check(const struct rb_arena *arena, const struct rb_tree *tree, uint32_t limit)
{
    struct traversal traversal = {arena, limit, 0};

    return check_subtree(&traversal, tree->root, RB_NONE, 1) < 0 ? -EUCLEAN : traversal.count;
}
