/*
 * Four indexes from a 64-bit key to a 32-bit number, and what an operation on each costs.
 *
 *   red-black tree   csrc/base/rbtree.c as it is, descended from its root
 *   stable index     csrc/store/stable.c as it is: linear hashing over small red-black trees.  Its
 *                    frames have records but no bytes, and no two keys are equal, so bytes are
 *                    never compared
 *   hash table       open addressing, linear probing, at most 3/4 full, grows by doubling;
 *                    removal shifts back
 *   sorted array     built by radix sort, looked up by binary search
 *
 * Times are processor times. Nothing is prefetched, though the engine does it for its index.  The caller gives the keys, and
 * the order in which they are looked up and removed.
 */

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ksmpy.h"

/* ---- store/stable.c, with what it takes from the rest of the engine ---- */

#include "../csrc/store/stable.c"

/* No two keys are equal, so it is the frame that is looked for; and frames have no bytes here. */
int compare_live(const void *one, const void *two)
{
    (void)one;
    (void)two;
    return 0;
}

bool frame_is_live(const struct store *store, uint32_t frame)
{
    return frame != NO_FRAME && frame_at(store, frame)->state == FRAME_LIVE;
}

/* ---- red-black tree ---- */

struct node {
    struct rb_node rb;
    uint32_t key_low, key_high; /* as rb_arena wants no more than multiples of 4 */
};

struct tree {
    struct rb_tree root;
    struct rb_arena arena;
};

static uint64_t key_of(const struct tree *tree, uint32_t at)
{
    const struct node *node = (const struct node *)(void *)rb_at(&tree->arena, at);
    return (uint64_t)node->key_high << 32 | node->key_low;
}

static uint32_t tree_find(void *index, uint64_t key)
{
    const struct tree *tree = index;
    uint32_t at = tree->root.root;
    while (at != RB_NONE) {
        uint64_t other = key_of(tree, at);
        if (key == other)
            break;
        at = rb_child(rb_at(&tree->arena, at), key < other ? RB_LEFT : RB_RIGHT);
    }
    return at;
}

static void tree_insert(void *index, uint64_t key, uint32_t value)
{
    struct tree *tree = index;
    struct node *node = (struct node *)(void *)rb_at(&tree->arena, value);
    uint32_t parent = RB_NONE, at = tree->root.root;
    enum rb_side side = RB_LEFT;
    node->key_low = (uint32_t)key;
    node->key_high = (uint32_t)(key >> 32);
    while (at != RB_NONE) {
        parent = at;
        side = key < key_of(tree, at) ? RB_LEFT : RB_RIGHT;
        at = rb_child(rb_at(&tree->arena, at), side);
    }
    rb_link(&tree->arena, &tree->root, value, parent, side);
}

static void tree_remove(void *index, uint64_t key)
{
    struct tree *tree = index;
    rb_erase(&tree->arena, &tree->root, tree_find(tree, key));
}

static void *tree_new(uint32_t count)
{
    struct tree *tree = malloc(sizeof *tree);
    tree->root = RB_EMPTY;
    tree->arena = (struct rb_arena){calloc(count, sizeof(struct node)), sizeof(struct node)};
    return tree;
}

static void tree_free(void *index)
{
    free(((struct tree *)index)->arena.base);
    free(index);
}

static double tree_bytes(const void *index, uint32_t count)
{
    (void)index;
    return (double)sizeof(struct node) * count;
}

/* ---- stable index ---- */

static void *stable_new(uint32_t count)
{
    struct store *store = calloc(1, sizeof *store);
    store->head = calloc(1, sizeof *store->head);
    store->head->knobs[KSMPY_KNOB_MAX_PAGE_SHARING] = 256;
    store->frames = calloc(count, sizeof(struct frame));
    forest_init(&store->stable[0], count, &store->head->node[0].stable);
    return store;
}

static void stable_free(void *index)
{
    struct store *store = index;
    arena_destroy(&store->stable[0].roots);
    free(store->frames);
    free(store->head);
    free(store);
}

static void stable_insert(void *index, uint64_t key, uint32_t value)
{
    struct store *store = index;
    struct frame *frame = frame_at(store, value);
    frame->sum = key;
    frame->dup_next = frame->dup_prev = NO_FRAME;
    stable_add(store, value, 0);
}

static uint32_t stable_lookup(void *index, uint64_t key)
{
    return stable_find(index, 0, key, NULL, NO_FRAME);
}

static void stable_take(void *index, uint64_t key)
{
    stable_remove(index, stable_lookup(index, key));
}

/* Of a frame's record what the index needs: node, checksum, chain. */
static double stable_bytes(const void *index, uint32_t count)
{
    const struct frame *frame = NULL;
    size_t record = sizeof frame->rb + sizeof frame->sum + 2 * sizeof frame->dup_next;
    const struct arena *roots = &((const struct store *)index)->stable[0].roots;
    return (double)record * count + (double)(roots->committed * roots->stride);
}

/* ---- hash table ---- */

#define EMPTY UINT32_MAX

struct table {
    uint64_t *keys;
    uint32_t *values;
    uint64_t size, used; /* slots, a power of two; how many of them hold something */
};

static void table_open(struct table *table, uint64_t size)
{
    table->size = size;
    table->used = 0;
    table->keys = malloc(size * sizeof *table->keys);
    table->values = malloc(size * sizeof *table->values);
    memset(table->values, 0xff, size * sizeof *table->values);
}

/* Where the key is, or the empty slot where it would be. */
static uint64_t table_slot(const struct table *table, uint64_t key)
{
    uint64_t slot = key & (table->size - 1);
    while (table->values[slot] != EMPTY && table->keys[slot] != key)
        slot = (slot + 1) & (table->size - 1);
    return slot;
}

static void table_put(struct table *table, uint64_t key, uint32_t value)
{
    uint64_t slot = table_slot(table, key);
    table->keys[slot] = key;
    table->values[slot] = value;
    table->used++;
}

static void table_insert(void *index, uint64_t key, uint32_t value)
{
    struct table *table = index;
    if (4 * (table->used + 1) > 3 * table->size) {
        struct table old = *table;
        table_open(table, 2 * old.size);
        for (uint64_t slot = 0; slot < old.size; slot++)
            if (old.values[slot] != EMPTY)
                table_put(table, old.keys[slot], old.values[slot]);
        free(old.keys);
        free(old.values);
    }
    table_put(table, key, value);
}

static uint32_t table_find(void *index, uint64_t key)
{
    const struct table *table = index;
    return table->values[table_slot(table, key)];
}

/* What follows in the chain of probes moves up, so that no tombstone is needed. */
static void table_remove(void *index, uint64_t key)
{
    struct table *table = index;
    uint64_t mask = table->size - 1, hole = table_slot(table, key);
    for (uint64_t slot = (hole + 1) & mask; table->values[slot] != EMPTY;
         slot = (slot + 1) & mask) {
        uint64_t home = table->keys[slot] & mask;
        if (((slot - home) & mask) < ((slot - hole) & mask))
            continue;
        table->keys[hole] = table->keys[slot];
        table->values[hole] = table->values[slot];
        hole = slot;
    }
    table->values[hole] = EMPTY;
    table->used--;
}

static void *table_new(uint32_t count)
{
    struct table *table = malloc(sizeof *table);
    (void)count;
    table_open(table, 64);
    return table;
}

static void table_free(void *index)
{
    struct table *table = index;
    free(table->keys);
    free(table->values);
    free(table);
}

static double table_bytes(const void *index, uint32_t count)
{
    const struct table *table = index;
    (void)count;
    return (double)table->size * (sizeof *table->keys + sizeof *table->values);
}

/* ---- sorted array ---- */

struct array {
    uint64_t *keys;
    uint32_t *values;
    uint32_t used;
};

static void *array_new(uint32_t count)
{
    struct array *array = malloc(sizeof *array);
    array->keys = malloc(count * sizeof *array->keys);
    array->values = malloc(count * sizeof *array->values);
    array->used = 0;
    return array;
}

static void array_free(void *index)
{
    struct array *array = index;
    free(array->keys);
    free(array->values);
    free(array);
}

/* The first place whose key is not below this one. */
static uint32_t array_place(const struct array *array, uint64_t key)
{
    uint32_t first = 0;
    for (uint32_t left = array->used; left;) {
        uint32_t half = left / 2;
        bool above = array->keys[first + half] < key;
        first += above ? half + 1 : 0;
        left = above ? left - half - 1 : half;
    }
    return first;
}

static uint32_t array_find(void *index, uint64_t key)
{
    const struct array *array = index;
    uint32_t place = array_place(array, key);
    return place < array->used && array->keys[place] == key ? array->values[place] : EMPTY;
}

static void array_insert(void *index, uint64_t key, uint32_t value)
{
    struct array *array = index;
    uint32_t place = array_place(array, key), rest = array->used - place;
    memmove(array->keys + place + 1, array->keys + place, rest * sizeof *array->keys);
    memmove(array->values + place + 1, array->values + place, rest * sizeof *array->values);
    array->keys[place] = key;
    array->values[place] = value;
    array->used++;
}

static void array_remove(void *index, uint64_t key)
{
    struct array *array = index;
    uint32_t place = array_place(array, key), rest = --array->used - place;
    memmove(array->keys + place, array->keys + place + 1, rest * sizeof *array->keys);
    memmove(array->values + place, array->values + place + 1, rest * sizeof *array->values);
}

/* One pass of a least-significant-digit radix sort, by 11 bits. */
static void sort_by_digit(const struct array *from, struct array *to, unsigned shift)
{
    uint32_t place[2048] = {0}, sum = 0;
    for (uint32_t i = 0; i < from->used; i++)
        place[from->keys[i] >> shift & 2047]++;
    for (int digit = 0; digit < 2048; digit++) {
        uint32_t count = place[digit];
        place[digit] = sum;
        sum += count;
    }
    for (uint32_t i = 0; i < from->used; i++) {
        uint32_t at = place[from->keys[i] >> shift & 2047]++;
        to->keys[at] = from->keys[i];
        to->values[at] = from->values[i];
    }
}

static void array_build(struct array *array, const uint64_t *keys, uint32_t count)
{
    struct array *other = array_new(count), *from = array, *to = other;
    for (uint32_t i = 0; i < count; i++) {
        array->keys[i] = keys[i];
        array->values[i] = i;
    }
    array->used = other->used = count;
    for (unsigned shift = 0; shift < 64; shift += 11) { /* 6 passes: it ends where it began */
        struct array *done = from;
        sort_by_digit(from, to, shift);
        from = to;
        to = done;
    }
    array_free(other);
}

/* ---- measuring ---- */

static const struct kind {
    void *(*new)(uint32_t count);
    void (*free)(void *index);
    void (*insert)(void *index, uint64_t key, uint32_t value);
    uint32_t (*find)(void *index, uint64_t key);
    void (*remove)(void *index, uint64_t key);
    double (*bytes)(const void *index, uint32_t count);
} kinds[] = {
    {tree_new, tree_free, tree_insert, tree_find, tree_remove, tree_bytes},
    {stable_new, stable_free, stable_insert, stable_lookup, stable_take, stable_bytes},
    {table_new, table_free, table_insert, table_find, table_remove, table_bytes},
    {array_new, array_free, array_insert, array_find, array_remove, NULL},
};
enum { TREE, STABLE, TABLE, ARRAY };

struct index_times { /* seconds for one operation, and bytes for one entry */
    double build, insert, find, miss, remove, bytes;
    uint64_t wrong; /* answers that were not right */
};

/* Processor time: nothing here waits for anything but memory. */
static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static double build(const struct kind *kind, void *index, const uint64_t *keys, uint32_t count)
{
    double begin = now();
    if (kind == &kinds[ARRAY])
        array_build(index, keys, count);
    else
        for (uint32_t i = 0; i < count; i++)
            kind->insert(index, keys[i], i);
    return (now() - begin) / count;
}

static double find_all(const struct kind *kind, void *index, const uint64_t *keys,
                       const uint32_t *order, uint32_t count, bool there, uint64_t *wrong)
{
    double begin = now();
    for (uint32_t i = 0; i < count; i++)
        *wrong += kind->find(index, keys[order[i]]) != (there ? order[i] : EMPTY);
    return (now() - begin) / count;
}

/* Takes `some` entries out and puts them back: seconds for one of each. */
static void change(const struct kind *kind, void *index, const uint64_t *keys,
                   const uint32_t *order, uint32_t some, struct index_times *out)
{
    double begin = now();
    for (uint32_t i = 0; i < some; i++)
        kind->remove(index, keys[order[i]]);
    double middle = now();
    for (uint32_t i = 0; i < some; i++)
        kind->insert(index, keys[order[i]], order[i]);
    out->remove = (middle - begin) / some;
    out->insert = (now() - middle) / some;
}

/*
 * keys, and as many that are not in the index; `order` is a permutation of their numbers.  `some`
 * entries are taken out and put back; the sorted array is fast enough for few only.
 */
void measure_index(int which, const uint64_t *keys, const uint64_t *absent, const uint32_t *order,
                   uint32_t count, uint32_t some, struct index_times *out)
{
    const struct kind *kind = &kinds[which];
    void *index = kind->new(count);
    *out = (struct index_times){0};
    out->build = build(kind, index, keys, count);
    out->find = find_all(kind, index, keys, order, count, true, &out->wrong);
    out->miss = find_all(kind, index, absent, order, count, false, &out->wrong);
    change(kind, index, keys, order, some, out);
    out->bytes = kind->bytes ? kind->bytes(index, count) / count : 12;
    kind->free(index);
}
