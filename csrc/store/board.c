/*
 * What the processes on a shared store tell each other, since none of them
 * reads another's memory.
 *
 * Announcements: the checksums of pages that wait for an equal one, and who
 * has them.  Whoever sees a checksum that another process waits with claims it, and
 * makes a frame of its own page; others that come meanwhile wait for that.  A hash
 * table with linear probing, at most half full: the table of size N is the
 * entries N .. 2N-1 of its part of the file, so that a bigger one is filled
 * beside it and the old one's memory goes back.
 *
 *   entry   | checksum and tree: 48 bits | claimed | kin wait | slot + 1: 14 bits |     0: empty
 *
 * Pages that several processes have by a fork are one page already, and a frame of it would save
 * nothing.  Who has such a page, and finds that one of those processes has announced it, waits, and
 * leaves a mark: when the announcement goes those who wait are told to look again.
 *
 * Events: the checksums of frames that came, or have room again.  The process
 * that waits reads them when its next pass begins, and looks those pages up
 * once more.  A ring; who was away for longer than that looks up all of them.
 *
 * Both are hints.  What is lost costs a merge, what is wrong a comparison.
 */
#include "store/board.h"

#include <errno.h>

#include "base/pages.h"
#include "os/arena.h"
#include "os/forks.h"
#include "store/layout.h"
#include "store/store.h"

#define SMALLEST 4096 /* entries of the first table: 32 KiB of the file */
#define TRIM 8192 /* entries of an old table that go back at once: 16 pages */
#define SUM_BITS 48
#define CLAIMED 0x8000
#define KIN_WAITS 0x4000
#define SLOT_MASK 0x3fff
#define ANYBODY 0x3fff /* in place of a slot: a page waits, but it is not known whose */
#define TREE_BITS 5
#define SLOT_BITS 11 /* room for NO_SLOT */

static uint64_t spread(int tree)
{
    return (uint64_t)tree * 0x9e3779b97f4a7c15 >> (64 - SUM_BITS);
}

static uint64_t key_of(int tree, uint64_t sum)
{
    return (sum ^ spread(tree)) << 16;
}

static uint64_t *entry_at(const struct store *store, uint64_t i)
{
    uint64_t size = store->head->announced_size;
    return arena_at(&store->announcements, size + (i & (size - 1)));
}

static uint64_t home_of(const struct store *store, uint64_t entry)
{
    return (uint64_t)(((unsigned __int128)(entry >> 16) * store->head->announced_size) >> SUM_BITS);
}

/* The index of the entry with that key, or of the empty place where it belongs. */
static uint64_t place_of(const struct store *store, uint64_t key)
{
    uint64_t i = home_of(store, key);
    while (*entry_at(store, i) && (*entry_at(store, i) ^ key) >> 16)
        i++;
    return i;
}

static uint64_t entry_for(uint64_t key, unsigned slot)
{
    return key | (slot + 1);
}

/*
 * Memory for a table of that size.  The arena's own count of what is committed is of no use here:
 * another process may have rebuilt the index and given the memory back.
 */
static int allocate(const struct store *store, uint64_t size)
{
    return arena_allocate(&store->announcements, size * sizeof(uint64_t), size * sizeof(uint64_t));
}

/*
 * The number of rebuilds is noted with the memory, because a rebuild by another process gives it
 * back; has_memory_for() compares them.
 */
void board_prepare(struct store *store)
{
    const struct store_head *head = store->head;
    uint64_t size = head->announced_size, rebuilds = head->rebuilds;
    bool soon = 2 * (head->announced_count + size / 64) >= size;
    if (!soon || !size || 4 * size > store->announcements.limit || store->larger.size == 2 * size)
        return;
    if (allocate(store, 2 * size) == 0)
        store->larger = (struct larger_table){2 * size, rebuilds};
}

static bool has_memory_for(struct store *store, uint64_t size)
{
    bool prepared = store->larger.size == size && store->larger.rebuilds == store->head->rebuilds;
    return prepared || allocate(store, size) == 0;
}

/*
 * Moves all entries to a table of twice the size.  If there is no memory for it the present one is
 * filled further, up to seven eighths.  false: it is full.
 */
static bool grow(struct store *store)
{
    struct store_head *head = store->head;
    uint64_t size = head->announced_size, found = 0;
    if (4 * size > store->announcements.limit || !has_memory_for(store, 2 * size))
        return head->announced_count < size - size / 8;
    head->announced_size = 2 * size;
    for (uint64_t i = size; i < 2 * size && found < head->announced_count; i++) {
        uint64_t entry = *(uint64_t *)arena_at(&store->announcements, i);
        if (!entry)
            continue;
        *entry_at(store, place_of(store, entry)) = entry;
        found++;
    }
    store->outgrown = (struct outgrown_table){size, 0};
    return true;
}

/*
 * The old table goes back only if the present one is larger, and so lies behind it.  After a
 * rebuild the present one may be smaller, and may lie where the old one was.
 */
bool board_trim(struct store *store)
{
    struct outgrown_table *old = &store->outgrown;
    uint64_t n = least(old->size - old->done, TRIM);
    if (!n || store->head->announced_size < 2 * old->size ||
        arena_punch(&store->announcements, (old->size + old->done) * sizeof(uint64_t),
                    n * sizeof(uint64_t)) == -EBADF) {
        *old = (struct outgrown_table){0, 0};
        return false;
    }
    old->done += n;
    return true;
}

int announcements_reset(struct store *store)
{
    arena_punch(&store->announcements, 0, store->announcements.limit * sizeof(uint64_t));
    store->head->announced_count = 0;
    int error = allocate(store, SMALLEST);
    store->head->announced_size = error ? 0 : SMALLEST;
    return error;
}

static bool is_of_kin(const struct store *store, uint64_t slot)
{
    return slot < MAX_SLOTS && store->head->slots[slot].kin == os_kin();
}

static enum announced meaning(const struct store *store, uint64_t entry)
{
    uint64_t slot = (entry & SLOT_MASK) - 1;
    if (slot == store->slot)
        return ANNOUNCED_HERE;
    if (entry & CLAIMED)
        return ANNOUNCED_SOON;
    return is_of_kin(store, slot) ? ANNOUNCED_BY_KIN : ANNOUNCED_ELSEWHERE;
}

bool announcement_is_elsewhere(const struct store *store, int tree, uint64_t sum)
{
    if (!store->head->announced_size)
        return false;
    uint64_t entry = *entry_at(store, place_of(store, key_of(tree, sum)));
    enum announced found = entry ? meaning(store, entry) : ANNOUNCED_NOWHERE;
    return found == ANNOUNCED_ELSEWHERE || found == ANNOUNCED_BY_KIN;
}

enum announced board_announce(struct store *store, int tree, uint64_t sum, bool own)
{
    struct store_head *head = store->head;
    uint64_t key = key_of(tree, sum);
    if (!head->announced_size ||
        (2 * head->announced_count >= head->announced_size && !grow(store)))
        return ANNOUNCED_NOWHERE;
    uint64_t *entry = entry_at(store, place_of(store, key));
    if (!*entry) {
        *entry = entry_for(key, store->slot);
        head->announced_count++;
        return ANNOUNCED_NOWHERE;
    }
    enum announced found = meaning(store, *entry);
    if (found == ANNOUNCED_BY_KIN) {
        if (!own) {
            *entry |= KIN_WAITS;
            return found;
        }
        found = ANNOUNCED_ELSEWHERE;
    }
    if (found == ANNOUNCED_ELSEWHERE && atomic_load(&head->full))
        found = ANNOUNCED_SOON; /* nobody claims a checksum before there is room for a frame */
    if (found == ANNOUNCED_ELSEWHERE)
        *entry = entry_for(key, store->slot) | CLAIMED;
    return found;
}

/*
 * Empties an entry.  A search ends at an empty one, so entries behind it that a search would not
 * reach any more move into the hole.
 */
static void erase(struct store *store, uint64_t hole)
{
    uint64_t mask = store->head->announced_size - 1;
    for (uint64_t i = hole + 1; *entry_at(store, i); i++) {
        uint64_t home = home_of(store, *entry_at(store, i));
        if (((i - home) & mask) < ((i - hole) & mask))
            continue;
        *entry_at(store, hole) = *entry_at(store, i);
        hole = i;
    }
    *entry_at(store, hole) = 0;
    store->head->announced_count--;
}

/* Returns what it was, with the mark that it may have had, or 0. */
static uint64_t remove_entry(struct store *store, uint64_t entry)
{
    if (!store->head->announced_size)
        return 0;
    uint64_t i = place_of(store, entry), found = *entry_at(store, i);
    if ((found & ~(uint64_t)KIN_WAITS) != entry)
        return 0;
    erase(store, i);
    return found;
}

void board_withdraw(struct store *store, int tree, uint64_t sum)
{
    if (remove_entry(store, entry_for(key_of(tree, sum), store->slot)) & KIN_WAITS)
        event_add(store, tree, sum);
}

/* Takes a claim back that led to no frame, and tells those who wait for it to look again. */
static void give_up(struct store *store, int tree, uint64_t sum, uint64_t claim)
{
    if (store->head->announced_size) {
        uint64_t *entry = entry_at(store, place_of(store, claim));
        if (*entry == claim)
            *entry = key_of(tree, sum) | ANYBODY;
    }
    event_add(store, tree, sum);
}

void board_settle(struct store *store, int tree, uint64_t sum, bool shared)
{
    uint64_t claim = entry_for(key_of(tree, sum), store->slot) | CLAIMED;
    if (shared)
        remove_entry(store, claim);
    else
        give_up(store, tree, sum, claim);
}

void announcements_forget_slot(struct store *store, unsigned slot)
{
    for (uint64_t i = 0; i < store->head->announced_size;) {
        uint64_t entry = *entry_at(store, i);
        if ((entry & SLOT_MASK) != slot + 1) {
            i++;
            continue;
        }
        erase(store, i); /* another entry may have moved to i, so i stays */
        for (int tree = 0; entry & (CLAIMED | KIN_WAITS) && tree < store->nodes; tree++)
            event_add_for_all(store, tree, entry >> 16 ^ spread(tree));
    }
}

int announcements_check(const struct store *store)
{
    uint64_t size = store->head->announced_size, found = 0;
    if (size == 0)
        return store->head->announced_count ? -EUCLEAN : 0;
    if (size & (size - 1) || size < SMALLEST || 2 * size > store->announcements.limit ||
        allocate(store, size) < 0)
        return -EUCLEAN;
    for (uint64_t i = 0; i < size; i++)
        found += *entry_at(store, i) != 0;
    return found == store->head->announced_count && found < size ? 0 : -EUCLEAN;
}

/* ---- events ---- */

static void add_event(struct store *store, int tree, uint64_t sum, unsigned slot)
{
    uint64_t at = store->head->events % STORE_EVENTS;
    if (!store->shared)
        return;
    if (arena_grow(&store->events, at + 1) < 0) {
        events_reset(store);
        return;
    }
    *(uint64_t *)arena_at(&store->events, at) =
        sum << (TREE_BITS + SLOT_BITS) | (uint64_t)tree << SLOT_BITS | slot;
    store->head->events++;
}

void event_add(struct store *store, int tree, uint64_t sum)
{
    add_event(store, tree, sum, store->slot);
}

void event_add_for_all(struct store *store, int tree, uint64_t sum)
{
    add_event(store, tree, sum, NO_SLOT);
}

/*
 * Goes so far ahead that every reader finds it has missed some events, and looks all its pages up
 * again; no event from before is read.
 */
void events_reset(struct store *store)
{
    store->head->events = (store->head->events / STORE_EVENTS + 3) * STORE_EVENTS;
}

int64_t board_read(const struct store *store, uint64_t *read, struct event *out, int64_t max)
{
    int64_t found = 0;
    uint64_t end = store->head->events;
    bool missed = end - *read > STORE_EVENTS || *read > end;
    if (missed)
        *read = end;
    for (; *read < end && found < max; ++*read) {
        uint64_t entry = *(uint64_t *)arena_at(&store->events, *read % STORE_EVENTS);
        if ((entry & ((1 << SLOT_BITS) - 1)) == store->slot)
            continue;
        out[found++] = (struct event){entry >> (TREE_BITS + SLOT_BITS),
                                      (int)(entry >> SLOT_BITS & ((1 << TREE_BITS) - 1))};
    }
    return missed ? -EOVERFLOW : found;
}
