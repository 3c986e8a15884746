/*
 * The index: who has these bytes?
 *
 * Two questions, for frames and for candidates.  Each is first asked of a hash
 * table that can only say "no" or "look closer"; most pages are unique, and
 * for them that is one cache miss.  The red-black trees answer the rest, and
 * only they say that two pages are equal.
 *
 *   frames      bucket of the checksum -> stable tree, ordered by checksum and
 *               then bytes, which never change; equal frames form a chain
 *   candidates  bucket: pages WAITING, linked through their records
 *               -> when an equal checksum comes, those of the bucket that have
 *               it go to the unstable tree, ordered by checksum and page id
 *
 * The checksums are those of the records, so a page that changes behind them
 * is found where it was put, and memcmp says that it is not equal any more.
 */
#include "engine.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static int compare_u64(uint64_t a, uint64_t b)
{
    return a < b ? -1 : a > b;
}

/* Live memory: a hint until it is compared again while frozen. */
KSMPY_READS_LIVE_MEMORY static int compare_bytes(const void *a, const void *b)
{
    return memcmp(a, b, PAGE_SIZE);
}

static uint64_t bucket(uint64_t sum, uint64_t buckets)
{
    return (uint64_t)(((unsigned __int128)sum * buckets) >> 48);
}

/* Empty buckets, or NULL. */
static uint32_t *new_heads(uint64_t buckets)
{
    uint32_t *heads = os_alloc(buckets * sizeof *heads);
    if (heads)
        memset(heads, 0xff, buckets * sizeof *heads);
    return heads;
}

/* ---- the stable trees ---- */

static struct rb_arena frame_arena(const ksmpy_engine *engine)
{
    return (struct rb_arena){.base = engine->store.frames, .stride = sizeof(struct frame)};
}

static uint32_t *frame_bucket(const ksmpy_engine *engine, uint64_t sum)
{
    return &engine->frame_heads[bucket(sum, engine->frame_buckets)];
}

static bool frame_bucket_has(const ksmpy_engine *engine, int tree, uint64_t sum)
{
    for (uint32_t at = *frame_bucket(engine, sum); at != NO_FRAME;
         at = frame_at(&engine->store, at)->next)
        if (frame_at(&engine->store, at)->sum == sum && frame_at(&engine->store, at)->tree == tree)
            return true;
    return false;
}

static void frame_bucket_remove(ksmpy_engine *engine, uint32_t frame)
{
    uint32_t *link = frame_bucket(engine, frame_at(&engine->store, frame)->sum);
    while (*link != frame)
        link = &frame_at(&engine->store, *link)->next;
    *link = frame_at(&engine->store, frame)->next;
}

static void frame_bucket_add(ksmpy_engine *engine, uint32_t frame)
{
    uint32_t *head = frame_bucket(engine, frame_at(&engine->store, frame)->sum);
    frame_at(&engine->store, frame)->next = *head;
    *head = frame;
}

struct place {
    uint32_t found, parent;
    enum rb_side side;
};

/* Where a frame with these bytes is in the tree, or would be linked. */
static struct place descend(const ksmpy_engine *engine, int tree, uint64_t sum, const void *bytes)
{
    struct rb_arena arena = frame_arena(engine);
    struct place place = {.found = NO_FRAME, .parent = RB_NONE, .side = RB_LEFT};
    uint32_t at = engine->stable[tree].root;
    while (at != RB_NONE) {
        int order = compare_u64(sum, frame_at(&engine->store, at)->sum);
        if (order == 0)
            order = compare_bytes(bytes, frame_bytes(&engine->store, at));
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

/* Of a chain: the preferred frame, else the fullest one that has room, as the kernel does. */
static uint32_t choose_dup(const ksmpy_engine *engine, uint32_t head, uint32_t preferred)
{
    uint64_t limit = engine->knobs[KSMPY_KNOB_MAX_PAGE_SHARING];
    uint32_t best = NO_FRAME;
    for (uint32_t at = head; at != NO_FRAME; at = frame_at(&engine->store, at)->dup_next) {
        const struct frame *frame = frame_at(&engine->store, at);
        if (frame->sharers >= limit)
            continue;
        if (at == preferred)
            return at;
        if (best == NO_FRAME || frame->sharers > frame_at(&engine->store, best)->sharers)
            best = at;
    }
    return best;
}

uint32_t index_find_frame(ksmpy_engine *engine, int tree, uint64_t sum, const void *bytes,
                          uint32_t preferred)
{
    if (!frame_bucket_has(engine, tree, sum))
        return NO_FRAME;
    struct place place = descend(engine, tree, sum, bytes);
    return place.found == NO_FRAME ? NO_FRAME : choose_dup(engine, place.found, preferred);
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

static void grow_frame_buckets(ksmpy_engine *engine)
{
    uint64_t buckets = engine->frame_buckets * 2;
    uint32_t *heads = new_heads(buckets), *old = engine->frame_heads;
    if (!heads)
        return; /* longer buckets are slower, not wrong */
    uint64_t old_buckets = engine->frame_buckets;
    engine->frame_heads = heads;
    engine->frame_buckets = buckets;
    for (uint64_t i = 0; i < old_buckets; i++)
        for (uint32_t at = old[i], next; at != NO_FRAME; at = next) {
            next = frame_at(&engine->store, at)->next;
            frame_bucket_add(engine, at);
        }
    os_unmap(old, old_buckets * sizeof *old);
}

void index_add_frame(ksmpy_engine *engine, uint32_t frame, int tree)
{
    struct frame *record = frame_at(&engine->store, frame);
    struct rb_arena arena = frame_arena(engine);
    struct place place = descend(engine, tree, record->sum, frame_bytes(&engine->store, frame));
    record->tree = (uint8_t)tree;
    record->live = 1;
    if (++engine->live_frames > engine->frame_buckets)
        grow_frame_buckets(engine);
    if (place.found != NO_FRAME) {
        chain_add(engine, place.found, frame);
        return;
    }
    rb_link(&arena, &engine->stable[tree], frame, place.parent, place.side);
    frame_bucket_add(engine, frame);
}

static void chain_remove(ksmpy_engine *engine, uint32_t frame)
{
    struct frame *record = frame_at(&engine->store, frame);
    if (record->dup_prev == NO_FRAME) { /* the head: the next one takes its place in the tree */
        struct rb_arena arena = frame_arena(engine);
        uint32_t heir = record->dup_next;
        rb_replace(&arena, &engine->stable[record->tree], frame, heir);
        frame_bucket_remove(engine, frame);
        frame_bucket_add(engine, heir);
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

void index_remove_frame(ksmpy_engine *engine, uint32_t frame)
{
    struct frame *record = frame_at(&engine->store, frame);
    bool alone = record->dup_prev == NO_FRAME && record->dup_next == NO_FRAME;
    if (alone) {
        struct rb_arena arena = frame_arena(engine);
        rb_erase(&arena, &engine->stable[record->tree], frame);
        frame_bucket_remove(engine, frame);
    } else {
        uint32_t head = chain_head(engine, frame);
        uint32_t rest = head == frame ? record->dup_next : head;
        chain_remove(engine, frame);
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

/* ---- candidates ---- */

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

static uint32_t *page_bucket(const ksmpy_engine *engine, uint64_t sum)
{
    return &engine->page_heads[bucket(sum, engine->page_buckets)];
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
    uint32_t *link = page_bucket(engine, sum);
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

uint32_t index_find_candidate(ksmpy_engine *engine, uint32_t id, uint32_t preferred)
{
    struct rb_arena arena = unode_arena(engine);
    uint64_t sum = page_sum(page_record(engine, id));
    int tree = candidate_tree(engine, id);
    const void *bytes = (const void *)page_address(engine, id);
    uint32_t found = NO_PAGE;
    pair_bucket(engine, tree, sum);
    for (uint32_t at = lower_bound(engine, tree, sum); at != RB_NONE; at = rb_next(&arena, at)) {
        uint32_t other = unode_at(engine, at)->page;
        if (page_sum(page_record(engine, other)) != sum)
            break;
        if ((found != NO_PAGE && other != preferred) ||
            compare_bytes(bytes, (const void *)page_address(engine, other)) != 0)
            continue;
        found = other;
    }
    return found;
}

void index_wake_candidates(ksmpy_engine *engine, int tree, uint64_t sum)
{
    pair_bucket(engine, tree, sum);
    for (;;) {
        uint32_t at = lower_bound(engine, tree, sum);
        if (at == RB_NONE || page_sum(page_record(engine, unode_at(engine, at)->page)) != sum)
            return;
        page_withdraw(engine, unode_at(engine, at)->page);
    }
}

void index_add_candidate(ksmpy_engine *engine, uint32_t id)
{
    uint32_t *head = page_bucket(engine, page_sum(page_record(engine, id)));
    page_become(engine, id, PAGE_WAITING, *head);
    *head = id;
}

void index_remove_candidate(ksmpy_engine *engine, uint32_t id)
{
    struct page *page = page_record(engine, id);
    if (page_state(page) == PAGE_PAIRED) {
        struct rb_arena arena = unode_arena(engine);
        uint32_t unode = page->link;
        rb_erase(&arena, &engine->unstable[candidate_tree(engine, id)], unode);
        unode_give(engine, unode);
    } else {
        uint32_t *link = page_bucket(engine, page_sum(page));
        while (*link != id)
            link = &page_record(engine, *link)->link;
        *link = page->link;
    }
    page_become(engine, id, PAGE_SEEN, NO_INDEX);
}

/* ---- the whole ---- */

#define FIRST_BUCKETS 1024

int index_init(ksmpy_engine *engine)
{
    for (int i = 0; i < MAX_NODES; i++)
        engine->stable[i] = engine->unstable[i] = RB_EMPTY;
    engine->unode_free = NO_INDEX;
    engine->page_buckets = engine->frame_buckets = FIRST_BUCKETS;
    engine->page_heads = new_heads(FIRST_BUCKETS);
    engine->frame_heads = new_heads(FIRST_BUCKETS);
    if (!engine->page_heads || !engine->frame_heads)
        return -ENOMEM;
    return arena_init(&engine->unodes, sizeof(struct unode), engine->pages.limit);
}

void index_destroy(ksmpy_engine *engine)
{
    os_unmap(engine->page_heads, engine->page_buckets * sizeof(uint32_t));
    os_unmap(engine->frame_heads, engine->frame_buckets * sizeof(uint32_t));
    arena_destroy(&engine->unodes);
}

/* Two pages a bucket at the most keep a record and its share of the table within 16 bytes. */
int index_resize(ksmpy_engine *engine, uint64_t pages)
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
            uint32_t *head = page_bucket(engine, page_sum(page_record(engine, id)));
            page_record(engine, id)->link = *head;
            *head = id;
        }
    os_unmap(old, old_buckets * sizeof *old);
    return 0;
}

uint64_t index_metadata_bytes(const ksmpy_engine *engine)
{
    return (engine->page_buckets + engine->frame_buckets) * sizeof(uint32_t) +
           engine->unodes.committed * sizeof(struct unode);
}
