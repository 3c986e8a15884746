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
#include "pages/candidates.h"

#include <errno.h>
#include <string.h>

#include "base/pages.h"
#include "base/rbtree.h"
#include "os/arena.h"
#include "os/guard.h"
#include "os/map.h"
#include "pages/pages.h"
#include "pages/records.h"
#include "store/announce.h"
#include "store/layout.h"

#define FIRST_BUCKETS 1024 /* of an empty engine: 4 KiB */
#define COMPARED 32 /* pages of one checksum that are compared: no more have one by chance */
#define WOKEN 256   /* max_page_sharing's default: that many can share the frame that has room */

/*
 * The bucket of a checksum.  Its upper bits decide, so that the pages of one bucket lie in
 * neighbouring buckets of a table of another size: see move_bucket().
 */
static uint64_t number_of(uint64_t sum, uint64_t buckets)
{
    return (uint64_t)(((unsigned __int128)sum * buckets) >> 48);
}

static uint32_t *bucket(const struct pages *pages, uint64_t sum)
{
    const struct candidates *candidates = &pages->candidates;
    if (candidates->old_heads) {
        uint64_t old = number_of(sum, candidates->old_buckets);
        if (old >= candidates->moved)
            return &candidates->old_heads[old];
    }
    return &candidates->heads[number_of(sum, candidates->buckets)];
}

bool candidates_bucket(const struct pages *pages, uint64_t number, uint32_t *id)
{
    const struct candidates *candidates = &pages->candidates;
    uint64_t old = candidates->old_heads ? candidates->old_buckets - candidates->moved : 0;
    if (number < old)
        *id = candidates->old_heads[candidates->moved + number];
    else if (number - old < candidates->cleared)
        *id = candidates->heads[number - old];
    return number < old + candidates->cleared;
}

/* Clears buckets of the new table up to that number, unless they were cleared before. */
static void clear_to(struct candidates *candidates, uint64_t end)
{
    if (end <= candidates->cleared)
        return;
    memset(candidates->heads + candidates->cleared, 0xff,
           (end - candidates->cleared) * sizeof *candidates->heads);
    candidates->cleared = end;
}

static struct rb_arena unode_arena(const struct pages *pages)
{
    return (struct rb_arena){.base = pages->candidates.nodes.base, .stride = sizeof(struct unode)};
}

static struct unode *unode_at(const struct pages *pages, uint32_t unode)
{
    return arena_at(&pages->candidates.nodes, unode);
}

static uint32_t unode_take(struct pages *pages)
{
    uint32_t unode = pages->candidates.free_node;
    if (unode != NO_INDEX) {
        pages->candidates.free_node = unode_at(pages, unode)->page;
        return unode;
    }
    if (arena_grow(&pages->candidates.nodes, pages->candidates.node_count + 1) < 0)
        return NO_INDEX;
    return pages->candidates.node_count++;
}

static void unode_give(struct pages *pages, uint32_t unode)
{
    unode_at(pages, unode)->page = pages->candidates.free_node;
    pages->candidates.free_node = unode;
}

static int candidate_tree(const struct pages *pages, uint32_t id)
{
    return tree_of(pages, page_node(page_record(pages, id)));
}

static int compare_keys(const struct pages *pages, uint64_t sum, uint32_t id, uint32_t unode)
{
    uint32_t other = unode_at(pages, unode)->page;
    int order = compare_u64(sum, page_sum(page_record(pages, other)));
    return order ? order : compare_u64(id, other);
}

/*
 * Puts a WAITING page into the unstable tree, and makes it PAIRED.  The caller takes it out of its
 * bucket then.  false: there is no memory for a node, so it stays there.
 */
static bool pair(struct pages *pages, uint32_t id)
{
    uint32_t unode = unode_take(pages);
    if (unode == NO_INDEX)
        return false;
    struct rb_arena arena = unode_arena(pages);
    struct rb_tree *tree = &pages->candidates.trees[candidate_tree(pages, id)];
    uint64_t sum = page_sum(page_record(pages, id));
    uint32_t parent = RB_NONE, at = tree->root;
    enum rb_side side = RB_LEFT;
    while (at != RB_NONE) {
        parent = at;
        side = compare_keys(pages, sum, id, at) < 0 ? RB_LEFT : RB_RIGHT;
        at = rb_child(rb_at(&arena, at), side);
    }
    unode_at(pages, unode)->page = id;
    rb_link(&arena, tree, unode, parent, side);
    page_become(pages, id, PAGE_PAIRED, unode);
    return true;
}

/* Moves those pages of the bucket that have this checksum and tree to the unstable tree. */
static void pair_bucket(struct pages *pages, int tree, uint64_t sum)
{
    uint32_t *link = bucket(pages, sum);
    while (*link != NO_PAGE) {
        uint32_t id = *link, next = page_record(pages, id)->link;
        bool equal = page_sum(page_record(pages, id)) == sum && candidate_tree(pages, id) == tree;
        if (equal && pair(pages, id))
            *link = next;
        else
            link = &page_record(pages, id)->link;
    }
}

/* The first node of the tree whose checksum is not below sum. */
static uint32_t lower_bound(const struct pages *pages, int tree, uint64_t sum)
{
    struct rb_arena arena = unode_arena(pages);
    uint32_t found = RB_NONE, at = pages->candidates.trees[tree].root;
    while (at != RB_NONE) {
        bool left = compare_keys(pages, sum, 0, at) <= 0;
        if (left)
            found = at;
        at = rb_child(rb_at(&arena, at), left ? RB_LEFT : RB_RIGHT);
    }
    return found;
}

/*
 * May the page be taken without a look at its bytes, because its checksum fits?  Pages are compared
 * when they are frozen, so a wrong guess costs a merge and no byte.
 */
static bool suits(const struct pages *pages, uint32_t id, int tree, uint64_t sum)
{
    if (id >= pages->records.committed)
        return false;
    const struct page *page = page_record(pages, id);
    return page_waits(page) && page_sum(page) == sum && candidate_tree(pages, id) == tree;
}

uint32_t candidate_find(struct pages *pages, uint32_t id, uint32_t preferred)
{
    struct rb_arena arena = unode_arena(pages);
    uint64_t sum = page_sum(page_record(pages, id));
    int tree = candidate_tree(pages, id);
    const void *bytes = (const void *)page_address(pages, id);
    if (suits(pages, preferred, tree, sum))
        return preferred;
    pair_bucket(pages, tree, sum);
    uint32_t at = lower_bound(pages, tree, sum);
    for (int tries = 0; at != RB_NONE && tries < COMPARED; at = rb_next(&arena, at), tries++) {
        uint32_t other = unode_at(pages, at)->page;
        if (page_sum(page_record(pages, other)) != sum)
            break;
        if (compare_live(bytes, (const void *)page_address(pages, other)) == 0)
            return other;
    }
    return NO_PAGE;
}

static void take_out(struct pages *pages, uint32_t id)
{
    struct page *page = page_record(pages, id);
    if (!pages->forked)
        announcement_remove(&pages->store, candidate_tree(pages, id), page_sum(page));
    if (page_state(page) == PAGE_PAIRED) {
        struct rb_arena arena = unode_arena(pages);
        uint32_t unode = page->link;
        rb_erase(&arena, &pages->candidates.trees[candidate_tree(pages, id)], unode);
        unode_give(pages, unode);
    } else {
        uint32_t *link = bucket(pages, page_sum(page));
        while (*link != id)
            link = &page_record(pages, *link)->link;
        *link = page->link;
    }
    page_become(pages, id, PAGE_SEEN, NO_INDEX);
}

void page_withdraw(struct pages *pages, uint32_t id)
{
    if (page_waits(page_record(pages, id)))
        take_out(pages, id);
}

void candidates_wake(struct pages *pages, int tree, uint64_t sum)
{
    uint64_t most = sum == pages->sum_of_zeros ? UINT64_MAX : WOKEN;
    pair_bucket(pages, tree, sum);
    for (uint64_t woken = 0; woken < most; woken++) {
        uint32_t at = lower_bound(pages, tree, sum);
        if (at == RB_NONE || page_sum(page_record(pages, unode_at(pages, at)->page)) != sum)
            return;
        uint32_t id = unode_at(pages, at)->page;
        page_withdraw(pages, id);
        page_set_age(page_record(pages, id), 0);
        page_set_skip(page_record(pages, id), 0);
    }
}

void candidates_prefetch(const struct pages *pages, uint64_t sum)
{
    __builtin_prefetch(bucket(pages, sum), 1);
}

void candidates_prefetch_page(const struct pages *pages, uint64_t sum, int place)
{
    uint32_t id = *bucket(pages, sum);
    while (place-- && id != NO_PAGE)
        id = page_record(pages, id)->link;
    if (id != NO_PAGE)
        __builtin_prefetch(page_record(pages, id));
}

void candidate_add(struct pages *pages, uint32_t id)
{
    uint32_t *head = bucket(pages, page_sum(page_record(pages, id)));
    page_become(pages, id, PAGE_WAITING, *head);
    *head = id;
}

int candidates_init(struct pages *pages)
{
    for (int i = 0; i < MAX_NODES; i++)
        pages->candidates.trees[i] = RB_EMPTY;
    pages->candidates.free_node = NO_INDEX;
    pages->candidates.buckets = FIRST_BUCKETS;
    pages->candidates.heads = os_alloc(FIRST_BUCKETS * sizeof(uint32_t));
    if (!pages->candidates.heads)
        return -ENOMEM;
    clear_to(&pages->candidates, FIRST_BUCKETS);
    return arena_init(&pages->candidates.nodes, sizeof(struct unode), pages->records.limit);
}

void candidates_destroy(struct pages *pages)
{
    os_unmap(pages->candidates.heads, pages->candidates.buckets * sizeof(uint32_t));
    os_unmap(pages->candidates.old_heads, pages->candidates.old_buckets * sizeof(uint32_t));
    arena_destroy(&pages->candidates.nodes);
}

/*
 * A table with at most two pages a bucket costs 2 to 3 bytes a page: with its record of twelve
 * bytes a page takes no more than 16.
 */
int candidates_grow(struct pages *pages, uint64_t n)
{
    struct candidates *candidates = &pages->candidates;
    if (candidates->old_heads || n <= 2 * candidates->buckets)
        return 0;
    uint64_t buckets = n * 3 / 4;
    uint32_t *heads = os_alloc(buckets * sizeof *heads);
    if (!heads)
        return -ENOMEM;
    candidates->old_heads = candidates->heads;
    candidates->old_buckets = candidates->buckets;
    candidates->heads = heads;
    candidates->buckets = buckets;
    candidates->moved = candidates->cleared = 0;
    return 0;
}

/*
 * Moves the pages of the next old bucket.  They go to new buckets that follow the ones of the
 * bucket before, so the new table is cleared only as far as that.
 */
static void move_bucket(struct pages *pages)
{
    struct candidates *candidates = &pages->candidates;
    uint32_t id = candidates->old_heads[candidates->moved++], next;
    uint64_t end = candidates->moved * candidates->buckets / candidates->old_buckets + 1;
    clear_to(candidates, least(end, candidates->buckets));
    for (; id != NO_PAGE; id = next) {
        next = page_record(pages, id)->link;
        uint32_t *head = bucket(pages, page_sum(page_record(pages, id)));
        page_record(pages, id)->link = *head;
        *head = id;
    }
}

#define MOVED_AT_ONCE 256 /* buckets moved between two looks at the clock: some cache misses each */

bool candidates_move_some(struct pages *pages)
{
    struct candidates *candidates = &pages->candidates;
    if (!candidates->old_heads)
        return false;
    uint64_t end = least(candidates->moved + MOVED_AT_ONCE, candidates->old_buckets);
    while (candidates->moved < end)
        move_bucket(pages);
    if (end < candidates->old_buckets)
        return true;
    os_unmap(candidates->old_heads, candidates->old_buckets * sizeof(uint32_t));
    candidates->old_heads = NULL;
    candidates->old_buckets = 0;
    return true;
}

uint64_t candidates_metadata_bytes(const struct pages *pages)
{
    return (pages->candidates.buckets + pages->candidates.old_buckets) * sizeof(uint32_t) +
           pages->candidates.nodes.committed * sizeof(struct unode);
}

/* Each node may have a tree of its own, so the page leaves the index before its node changes. */
void page_move_to_node(struct pages *pages, uint32_t id, unsigned node)
{
    struct page *page = page_record(pages, id);
    if (page_node(page) == node)
        return;
    page_withdraw(pages, id);
    page_set_node(page, node);
}
