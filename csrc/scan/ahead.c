/* Checksums of the pages that come next. */
#include "scan/ahead.h"

#include "base/checksum.h"
#include "base/pages.h"
#include "merge/merger.h"
#include "merge/run.h"
#include "os/guard.h"
#include "pages/candidates.h"
#include "pages/pages.h"
#include "scan/scanner.h"
#include "store/stable.h"

/*
 * Cache lines of the next page that are prefetched at the end of a page: by itself the processor
 * stops to prefetch where a page ends.
 */
#define LINES 8

bool is_to_be_looked_up(const struct budget *budget, enum page_state state)
{
    return state == PAGE_NEW || state == PAGE_SEEN || (state == PAGE_REFUSED && budget->asks_again);
}

/* Will this page of the window be looked up, as far as is known now?  A wrong guess costs time. */
static bool wants_sum(const struct scanner *scanner, uint32_t id, uint64_t at, bool eager)
{
    const struct window *window = &scanner->window;
    const struct page *page = page_record(scanner->pages, id);
    enum page_state state = page_state(page);
    if (has_bit(window->zero, at) || page_age(page) >= ALWAYS_VISITED || state >= PAGE_SHARED)
        return false;
    if (!scanner->pages->tracked)
        return true;
    return has_bit(window->written, at) ? eager
                                        : is_to_be_looked_up(&scanner->merger->budget, state);
}

/*
 * Takes the checksum of one page more, ahead of the page that is dealt with.  Its place in the
 * index is prefetched, and the frame and the pages that wait at the places of some pages before it:
 * so they are in the cache when their turn comes.
 */
static void sum_one_more(struct scanner *scanner, uint32_t id)
{
    struct ahead *ahead = &scanner->ahead;
    uintptr_t address = page_address(scanner->pages, id);
    int tree = tree_of(scanner->pages, page_node(page_record(scanner->pages, id)));
    uint64_t sum;
    bool readable = guard_checksum(&scanner->pages->store.key, (const void *)address, &sum);
    sum = readable ? cut_sum(sum) : UNREADABLE;
    ahead->sums[id % AHEAD] = sum;
    ahead->n++;
    if (!readable)
        return;
    stable_prefetch(&scanner->pages->store, tree, sum);
    candidates_prefetch(scanner->pages, sum);
    for (int line = 0; line < LINES; line++)
        __builtin_prefetch((const char *)address + PAGE_SIZE + 64 * line);
    for (uint32_t place = 0, back = AHEAD / 2; place < 2; place++, back += AHEAD / 4) {
        uint64_t before = ahead->n > back ? ahead->sums[(id - back) % AHEAD] : UNREADABLE;
        if (before == UNREADABLE)
            continue;
        if (place == 0)
            stable_prefetch_root(&scanner->pages->store, tree, before);
        candidates_prefetch_page(scanner->pages, before, (int)place);
    }
}

uint64_t sum_of(struct scanner *scanner, uint32_t id, bool eager)
{
    const struct window *window = &scanner->window;
    struct ahead *ahead = &scanner->ahead;
    uint32_t first = region_at(scanner->pages, window->region)->base + (uint32_t)window->first;
    uint64_t past = id - ahead->first, end = least(ahead->end, first + window->n);
    ahead->n = past < ahead->n ? ahead->n - past : 0;
    ahead->first = id;
    while (ahead->n < AHEAD) {
        uint32_t next = id + (uint32_t)ahead->n;
        if (ahead->n && (next >= end || !wants_sum(scanner, next, next - first, eager)))
            break;
        sum_one_more(scanner, next);
    }
    return ahead->sums[id % AHEAD];
}
