/* Page records, and the counters that follow from their states. */
#include "pages/records.h"

#include "base/pages.h"
#include "os/guard.h"
#include "os/numa.h"
#include "pages/pages.h"

int node_index(const struct pages *pages, int node_id)
{
    for (int node = 0; node < pages->nodes; node++)
        if (pages->node_ids[node] == node_id)
            return node;
    return -1;
}

uint64_t pages_on_their_node(const struct pages *pages, uint32_t id, uint64_t n)
{
    int found[CHUNK];
    for (uint64_t i = 0; i < n; i++) {
        uint64_t rest = least(n - i, CHUNK);
        if (i % CHUNK == 0 && os_nodes(page_address(pages, id + (uint32_t)i), rest, found) < 0)
            return i;
        if (node_index(pages, found[i % CHUNK]) !=
            (int)page_node(page_record(pages, id + (uint32_t)i)))
            return i;
    }
    return n;
}

uint64_t pages_alike(const struct pages *pages, uint32_t id, uint64_t n, enum page_state state)
{
    bool in_it = page_state(page_record(pages, id)) == state;
    uint64_t end = 1;
    while (end < n && (page_state(page_record(pages, id + (uint32_t)end)) == state) == in_it)
        end++;
    return end;
}

void page_become(struct pages *pages, uint32_t id, enum page_state state, uint32_t link)
{
    struct page *page = page_record(pages, id);
    struct region *region = region_at(pages, region_of(pages, id));
    enum page_state old = page_state(page);
    pages->pages_in[old]--;
    pages->pages_in[state]++;
    region->pages_in[old]--;
    region->pages_in[state]++;
    chunk_of(pages, id)->unsettled += (uint16_t)(is_unsettled(state) - is_unsettled(old));
    page_set_state(page, state);
    page->link = link;
}
void mark_untracked(struct pages *pages, uint32_t id, uint64_t n)
{
    for (uint32_t at = id; at < id + n; at = (at | (CHUNK - 1)) + 1)
        chunk_of(pages, at)->untracked = true;
}
bool page_is_zero(const struct pages *pages, uint32_t id)
{
    bool zero;
    return guard_is_zero((const void *)page_address(pages, id), &zero) && zero;
}
