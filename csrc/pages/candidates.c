/*
 * The unstable trees: which page that waits has these bytes?
 *
 * Most pages are unique, and all that they need is a place to be found in: a
 * bucket of a hash table, linked through their records.  When an equal checksum
 * comes, those of the bucket that have it go to the unstable tree, ordered by
 * checksum and page id.
 *
 * The checksums are those of the records, so a page that changes behind them
 * is found where it was put, and memcmp says that it is not equal any more.
 */
#include <errno.h>
#include <string.h>

#include "base/rbtree.h"
#include "engine/engine.h"
#include "ksmpy.h"
#include "os/arena.h"
#include "os/map.h"
#include "store/store.h"

#define FIRST_BUCKETS 1024
#define COMPARED 32 /* different pages of one checksum; more are none by chance */
#define WOKEN 256   /* as many as a frame has sharers, by default */

static uint32_t *bucket(const ksmpy_engine *engine, uint64_t sum)
{
    return &engine->page_heads[(uint64_t)(((unsigned __int128)sum * engine->page_buckets) >> 48)];
}

/* Empty buckets, or NULL. */
static uint32_t *new_heads(uint64_t buckets)
{
    uint32_t *heads = os_alloc(buckets * sizeof *heads);
    if (heads)
        memset(heads, 0xff, buckets * sizeof *heads);
    return heads;
}

static struct rb_arena unode_arena(const ksmpy_engine *engine)
{
    return (struct rb_arena){.base = engine->unodes.base, .stride = sizeof(struct unode)};
}

static struct unode *unode_at(const ksmpy_engine *engine, uint32_t unode)
{
    return arena_at(&engine->unodes, unode);
}

static uint32_t unode_take(ksmpy_engine *engine)
{
    uint32_t unode = engine->unode_free;
    if (unode != NO_INDEX) {
        engine->unode_free = unode_at(engine, unode)->page;
        return unode;
    }
    if (arena_grow(&engine->unodes, engine->unode_count + 1) < 0)
        return NO_INDEX;
    return engine->unode_count++;
}

static void unode_give(ksmpy_engine *engine, uint32_t unode)
{
    unode_at(engine, unode)->page = engine->unode_free;
    engine->unode_free = unode;
}

static int candidate_tree(const ksmpy_engine *engine, uint32_t id)
{
    return tree_of(engine, page_node(page_record(engine, id)));
}

static int compare_keys(const ksmpy_engine *engine, uint64_t sum, uint32_t id, uint32_t unode)
{
    uint32_t other = unode_at(engine, unode)->page;
    int order = compare_u64(sum, page_sum(page_record(engine, other)));
    return order ? order : compare_u64(id, other);
}

/* WAITING, and already out of its bucket. Without memory for a node it waits on. */
static bool pair(ksmpy_engine *engine, uint32_t id)
{
    uint32_t unode = unode_take(engine);
    if (unode == NO_INDEX)
        return false;
    struct rb_arena arena = unode_arena(engine);
    struct rb_tree *tree = &engine->unstable[candidate_tree(engine, id)];
    uint64_t sum = page_sum(page_record(engine, id));
    uint32_t parent = RB_NONE, at = tree->root;
    enum rb_side side = RB_LEFT;
    while (at != RB_NONE) {
        parent = at;
        side = compare_keys(engine, sum, id, at) < 0 ? RB_LEFT : RB_RIGHT;
        at = rb_child(rb_at(&arena, at), side);
    }
    unode_at(engine, unode)->page = id;
    rb_link(&arena, tree, unode, parent, side);
    page_become(engine, id, PAGE_PAIRED, unode);
    return true;
}

/* Pages of the bucket with this checksum, of this tree, go to the unstable tree. */
static void pair_bucket(ksmpy_engine *engine, int tree, uint64_t sum)
{
    uint32_t *link = bucket(engine, sum);
    while (*link != NO_PAGE) {
        uint32_t id = *link, next = page_record(engine, id)->link;
        bool equal = page_sum(page_record(engine, id)) == sum && candidate_tree(engine, id) == tree;
        if (equal && pair(engine, id))
            *link = next;
        else
            link = &page_record(engine, id)->link;
    }
}

/* The first node of the tree whose checksum is not below sum. */
static uint32_t lower_bound(const ksmpy_engine *engine, int tree, uint64_t sum)
{
    struct rb_arena arena = unode_arena(engine);
    uint32_t found = RB_NONE, at = engine->unstable[tree].root;
    while (at != RB_NONE) {
        bool left = compare_keys(engine, sum, 0, at) <= 0;
        if (left)
            found = at;
        at = rb_child(rb_at(&arena, at), left ? RB_LEFT : RB_RIGHT);
    }
    return found;
}

/* The frozen comparison decides; a page that makes a run longer is taken at its checksum's word. */
static bool suits(const ksmpy_engine *engine, uint32_t id, int tree, uint64_t sum)
{
    if (id >= engine->pages.committed)
        return false;
    const struct page *page = page_record(engine, id);
    return page_waits(page) && page_sum(page) == sum && candidate_tree(engine, id) == tree;
}

uint32_t unstable_find(ksmpy_engine *engine, uint32_t id, uint32_t preferred)
{
    struct rb_arena arena = unode_arena(engine);
    uint64_t sum = page_sum(page_record(engine, id));
    int tree = candidate_tree(engine, id);
    const void *bytes = (const void *)page_address(engine, id);
    if (suits(engine, preferred, tree, sum))
        return preferred;
    pair_bucket(engine, tree, sum);
    uint32_t at = lower_bound(engine, tree, sum);
    for (int tries = 0; at != RB_NONE && tries < COMPARED; at = rb_next(&arena, at), tries++) {
        uint32_t other = unode_at(engine, at)->page;
        if (page_sum(page_record(engine, other)) != sum)
            break;
        if (compare_live(bytes, (const void *)page_address(engine, other)) == 0)
            return other;
    }
    return NO_PAGE;
}

void unstable_wake(ksmpy_engine *engine, int tree, uint64_t sum)
{
    uint64_t most = sum == engine->sum_of_zeros ? UINT64_MAX : WOKEN;
    pair_bucket(engine, tree, sum);
    for (uint64_t woken = 0; woken < most; woken++) {
        uint32_t at = lower_bound(engine, tree, sum);
        if (at == RB_NONE || page_sum(page_record(engine, unode_at(engine, at)->page)) != sum)
            return;
        uint32_t id = unode_at(engine, at)->page;
        page_withdraw(engine, id);
        page_set_age(page_record(engine, id), 0);
        page_set_skip(page_record(engine, id), 0);
    }
}

void unstable_prefetch(const ksmpy_engine *engine, uint64_t sum)
{
    __builtin_prefetch(bucket(engine, sum), 1);
}

void unstable_prefetch_page(const ksmpy_engine *engine, uint64_t sum, int place)
{
    uint32_t id = *bucket(engine, sum);
    while (place-- && id != NO_PAGE)
        id = page_record(engine, id)->link;
    if (id != NO_PAGE)
        __builtin_prefetch(page_record(engine, id));
}

void unstable_add(ksmpy_engine *engine, uint32_t id)
{
    uint32_t *head = bucket(engine, page_sum(page_record(engine, id)));
    page_become(engine, id, PAGE_WAITING, *head);
    *head = id;
}

void unstable_remove(ksmpy_engine *engine, uint32_t id)
{
    struct page *page = page_record(engine, id);
    if (!engine->forked)
        announcement_remove(&engine->store, candidate_tree(engine, id), page_sum(page));
    if (page_state(page) == PAGE_PAIRED) {
        struct rb_arena arena = unode_arena(engine);
        uint32_t unode = page->link;
        rb_erase(&arena, &engine->unstable[candidate_tree(engine, id)], unode);
        unode_give(engine, unode);
    } else {
        uint32_t *link = bucket(engine, page_sum(page));
        while (*link != id)
            link = &page_record(engine, *link)->link;
        *link = page->link;
    }
    page_become(engine, id, PAGE_SEEN, NO_INDEX);
}

int unstable_init(ksmpy_engine *engine)
{
    for (int i = 0; i < MAX_NODES; i++)
        engine->unstable[i] = RB_EMPTY;
    engine->unode_free = NO_INDEX;
    engine->page_buckets = FIRST_BUCKETS;
    engine->page_heads = new_heads(FIRST_BUCKETS);
    if (!engine->page_heads)
        return -ENOMEM;
    return arena_init(&engine->unodes, sizeof(struct unode), engine->pages.limit);
}

void unstable_destroy(ksmpy_engine *engine)
{
    os_unmap(engine->page_heads, engine->page_buckets * sizeof(uint32_t));
    arena_destroy(&engine->unodes);
}

/* Two pages a bucket at the most keep a record and its share of the table within 16 bytes. */
int unstable_resize(ksmpy_engine *engine, uint64_t pages)
{
    if (pages <= 2 * engine->page_buckets)
        return 0;
    uint64_t buckets = pages * 3 / 4;
    uint32_t *heads = new_heads(buckets), *old = engine->page_heads;
    if (!heads)
        return -ENOMEM;
    uint64_t old_buckets = engine->page_buckets;
    engine->page_heads = heads;
    engine->page_buckets = buckets;
    for (uint64_t i = 0; i < old_buckets; i++)
        for (uint32_t id = old[i], next; id != NO_PAGE; id = next) {
            next = page_record(engine, id)->link;
            uint32_t *head = bucket(engine, page_sum(page_record(engine, id)));
            page_record(engine, id)->link = *head;
            *head = id;
        }
    os_unmap(old, old_buckets * sizeof *old);
    return 0;
}

uint64_t unstable_metadata_bytes(const ksmpy_engine *engine)
{
    return engine->page_buckets * sizeof(uint32_t) +
           engine->unodes.committed * sizeof(struct unode);
}
