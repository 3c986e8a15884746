/*
 * The tree beside a sorted array that always tells the truth: the same random
 * operations on both, and after each one the tree must be sound and list the
 * same elements.
 */
#include <errno.h>
#include <string.h>

#include "base/rbtree.h"
#include "check.h"

enum { CAPACITY = 300, KEYS = 1000 };

/* Elements as in the engine: the node inside something bigger, and not first in it. */
struct item {
    uint64_t key;
    struct rb_node node;
    uint32_t canary;
};

struct model {
    uint32_t items[CAPACITY]; /* indices, by rising key, equal keys in order of arrival */
    uint32_t count;
};

static struct item items[CAPACITY];
static int in_tree[CAPACITY];

static struct rb_arena arena_of(struct item *base)
{
    return (struct rb_arena){&base->node, sizeof(struct item)};
}

static void tree_insert(const struct rb_arena *arena, struct rb_tree *tree, uint32_t index)
{
    uint32_t parent = RB_NONE, at = tree->root;
    enum rb_side side = RB_LEFT;

    while (at != RB_NONE) {
        parent = at;
        side = items[at].key <= items[index].key ? RB_RIGHT : RB_LEFT;
        at = rb_child(rb_at(arena, at), side);
    }
    rb_link(arena, tree, index, parent, side);
    in_tree[index] = 1;
}

static void tree_erase(const struct rb_arena *arena, struct rb_tree *tree, uint32_t index)
{
    rb_erase(arena, tree, index);
    memset(&items[index].node, 0xa5, sizeof(items[index].node)); /* nobody may look at it again */
    in_tree[index] = 0;
}

static void model_insert(struct model *model, uint32_t index)
{
    uint32_t at = model->count++;

    for (; at > 0 && items[model->items[at - 1]].key > items[index].key; at--)
        model->items[at] = model->items[at - 1];
    model->items[at] = index;
}

static uint32_t model_position(const struct model *model, uint32_t index)
{
    uint32_t at = 0;

    while (model->items[at] != index)
        at++;
    return at;
}

static void model_erase(struct model *model, uint32_t index)
{
    uint32_t at = model_position(model, index);

    model->count--;
    memmove(model->items + at, model->items + at + 1,
            (model->count - at) * sizeof(model->items[0]));
}

static int lists_the_same(const struct rb_arena *arena, const struct rb_tree *tree,
                          const struct model *model)
{
    uint32_t at = rb_first(arena, tree), i;

    for (i = 0; i < model->count; i++, at = rb_next(arena, at))
        if (at != model->items[i])
            return 0;
    if (at != RB_NONE)
        return 0;
    for (at = rb_last(arena, tree); i-- > 0; at = rb_prev(arena, at))
        if (at != model->items[i])
            return 0;
    return at == RB_NONE;
}

static uint32_t pick(uint64_t *random, int wanted)
{
    uint32_t index;

    do
        index = next_random(random) % CAPACITY;
    while (in_tree[index] != wanted);
    return index;
}

static void replace_one(const struct rb_arena *arena, struct rb_tree *tree, struct model *model,
                        uint64_t *random)
{
    uint32_t old = pick(random, 1), new = pick(random, 0);

    items[new].key = items[old].key;
    rb_replace(arena, tree, old, new);
    memset(&items[old].node, 0xa5, sizeof(items[old].node));
    in_tree[old] = 0;
    in_tree[new] = 1;
    model->items[model_position(model, old)] = new;
}

static void random_step(const struct rb_arena *arena, struct rb_tree *tree, struct model *model,
                        uint64_t *random, int grow_percent)
{
    int dice = (int)(next_random(random) % 100);
    uint32_t index;

    if (model->count > 0 && model->count < CAPACITY && dice < 5) {
        replace_one(arena, tree, model, random);
    } else if (model->count < CAPACITY && (model->count == 0 || dice < grow_percent)) {
        index = pick(random, 0);
        items[index].key = next_random(random) % KEYS;
        tree_insert(arena, tree, index);
        model_insert(model, index);
    } else {
        index = pick(random, 1);
        tree_erase(arena, tree, index);
        model_erase(model, index);
    }
}

static void random_operations_agree_with_the_model(void)
{
    struct rb_arena arena = arena_of(items);
    uint64_t random = test_seed();

    for (int round = 0; round < 20 * test_effort(); round++) {
        struct rb_tree tree = RB_EMPTY;
        struct model model = {.count = 0};

        memset(in_tree, 0, sizeof(in_tree));
        for (uint32_t i = 0; i < CAPACITY; i++)
            items[i].canary = i;
        for (int step = 0; step < 3000; step++) {
            /* the tree fills, then empties, and so on */
            random_step(&arena, &tree, &model, &random, step / 500 % 2 ? 25 : 75);
            REQUIRE(rb_check(&arena, &tree, CAPACITY) == model.count);
            REQUIRE(lists_the_same(&arena, &tree, &model));
        }
        for (uint32_t i = 0; i < CAPACITY; i++)
            CHECK(items[i].canary == i);
    }
}

static void fill(const struct rb_arena *arena, struct rb_tree *tree, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        items[i].key = i;
        tree_insert(arena, tree, i);
    }
}

static void every_order_of_few_elements_works(void)
{
    enum { FEW = 7 };
    struct rb_arena arena = arena_of(items);
    struct rb_tree tree;
    uint32_t order[FEW];
    int wrong = 0;

    /* all numbers of FEW digits in base FEW; those without a repeated digit are permutations */
    for (uint32_t code = 0; code < 823543 /* 7^7 */; code++) {
        uint32_t rest = code, seen = 0;

        for (int i = 0; i < FEW; i++, rest /= FEW) {
            order[i] = rest % FEW;
            seen |= 1u << order[i];
        }
        if (seen != (1u << FEW) - 1)
            continue;
        tree = RB_EMPTY;
        fill(&arena, &tree, FEW);
        for (int i = 0; i < FEW; i++) {
            tree_erase(&arena, &tree, order[i]);
            wrong += rb_check(&arena, &tree, FEW) != FEW - 1 - i;
        }
        for (int i = 0; i < FEW; i++) {
            items[order[i]].key = order[i];
            tree_insert(&arena, &tree, order[i]);
            wrong += rb_check(&arena, &tree, FEW) != i + 1;
        }
    }
    CHECK(wrong == 0);
}

static void ascending_and_descending_keys_stay_balanced(void)
{
    struct rb_arena arena = arena_of(items);

    for (int descending = 0; descending < 2; descending++) {
        struct rb_tree tree = RB_EMPTY;

        for (uint32_t i = 0; i < CAPACITY; i++) {
            items[i].key = descending ? CAPACITY - i : i;
            tree_insert(&arena, &tree, i);
            CHECK(rb_check(&arena, &tree, CAPACITY) == i + 1);
        }
    }
}

static void the_tree_is_the_same_at_another_address(void)
{
    static struct item copy[CAPACITY];
    struct rb_arena arena = arena_of(items), elsewhere = arena_of(copy);
    struct rb_tree tree = RB_EMPTY;
    uint32_t at;

    fill(&arena, &tree, CAPACITY);
    memcpy(copy, items, sizeof(copy));
    CHECK(rb_check(&elsewhere, &tree, CAPACITY) == CAPACITY);
    at = rb_first(&elsewhere, &tree);
    for (uint32_t i = 0; i < CAPACITY; i++, at = rb_next(&elsewhere, at))
        CHECK(at == i);
    CHECK(at == RB_NONE);
}

static void an_empty_tree_has_no_ends(void)
{
    struct rb_arena arena = arena_of(items);
    struct rb_tree tree = RB_EMPTY;

    CHECK(rb_check(&arena, &tree, CAPACITY) == 0);
    CHECK(rb_first(&arena, &tree) == RB_NONE);
    CHECK(rb_last(&arena, &tree) == RB_NONE);
}

static void parents_survive_their_encoding(void)
{
    struct rb_node node = {.parent_color = RB_NONE << 1 | RB_RED};

    CHECK(rb_parent(&node) == RB_NONE && rb_color(&node) == RB_RED);
    node.parent_color = RB_NONE << 1 | RB_BLACK;
    CHECK(rb_parent(&node) == RB_NONE && rb_color(&node) == RB_BLACK);
    node.parent_color = (RB_MAX_NODES - 1) << 1 | RB_BLACK;
    CHECK(rb_parent(&node) == RB_MAX_NODES - 1);
    node.parent_color = 0u << 1 | RB_BLACK;
    CHECK(rb_parent(&node) == 0);
}

/* A checker that finds nothing proves nothing: break each rule on purpose. */
static void the_checker_finds_each_kind_of_damage(void)
{
    struct rb_arena arena = arena_of(items);
    struct rb_tree tree = RB_EMPTY;
    struct rb_node *root, saved, *leaf;

    fill(&arena, &tree, 100);
    CHECK(rb_check(&arena, &tree, 100) == 100);
    root = rb_at(&arena, tree.root);
    leaf = rb_at(&arena, rb_first(&arena, &tree));

    CHECK(rb_check(&arena, &tree, 99) == -EUCLEAN); /* an index out of the arena */
    saved = *root;
    root->parent_color &= ~1u; /* a red root */
    CHECK(rb_check(&arena, &tree, 100) == -EUCLEAN);
    root->parent_color = 5u << 1 | RB_BLACK; /* a root with a parent */
    CHECK(rb_check(&arena, &tree, 100) == -EUCLEAN);
    *root = saved;
    root->right = root->left; /* one child on both sides, and every other rule kept */
    CHECK(rb_check(&arena, &tree, 100) == -EUCLEAN);
    *root = saved;

    saved = *leaf;
    leaf->parent_color ^= 1; /* one black more or less, or two reds in a row */
    CHECK(rb_check(&arena, &tree, 100) == -EUCLEAN);
    leaf->parent_color = (rb_parent(&saved) + 1) << 1 | rb_color(&saved); /* a wrong parent */
    CHECK(rb_check(&arena, &tree, 100) == -EUCLEAN);
    *leaf = saved;
    leaf->left = tree.root; /* a cycle */
    CHECK(rb_check(&arena, &tree, 100) == -EUCLEAN);
    leaf->left = 12345678; /* nonsense */
    CHECK(rb_check(&arena, &tree, 100) == -EUCLEAN);
    *leaf = saved;
    CHECK(rb_check(&arena, &tree, 100) == 100);
}

static void the_checker_survives_random_bytes(void)
{
    struct rb_arena arena = arena_of(items);
    uint64_t random = test_seed();

    for (int round = 0; round < 2000 * test_effort(); round++) {
        struct rb_tree tree = {next_random(&random) % CAPACITY};

        for (uint32_t i = 0; i < CAPACITY; i++)
            items[i].node = (struct rb_node){next_random(&random) % (CAPACITY + 5),
                                             next_random(&random) % (CAPACITY + 5),
                                             (uint32_t)next_random(&random) % (2 * CAPACITY)};
        CHECK(rb_check(&arena, &tree, CAPACITY) == -EUCLEAN);
    }
}

int main(void)
{
    RUN(an_empty_tree_has_no_ends);
    RUN(parents_survive_their_encoding);
    RUN(every_order_of_few_elements_works);
    RUN(ascending_and_descending_keys_stay_balanced);
    RUN(random_operations_agree_with_the_model);
    RUN(the_tree_is_the_same_at_another_address);
    RUN(the_checker_finds_each_kind_of_damage);
    RUN(the_checker_survives_random_bytes);
    return finish();
}
