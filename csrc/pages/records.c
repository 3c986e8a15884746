/* Page records, and the counters that follow from their states. */
#include <string.h>

#include "base/pages.h"
#include "engine/engine.h"
#include "ksmpy.h"
#include "os/arena.h"
#include "os/numa.h"
#include "os/pagemap.h"
#include "store/store.h"

int node_index(const ksmpy_engine *engine, int node_id)
{
    for (int node = 0; node < engine->nodes; node++)
        if (engine->node_ids[node] == node_id)
            return node;
    return -1;
}

uint64_t pages_on_their_node(const ksmpy_engine *engine, uint32_t id, uint64_t n)
{
    int found[CHUNK];
    for (uint64_t i = 0; i < n; i++) {
        uint64_t rest = least(n - i, CHUNK);
        if (i % CHUNK == 0 && os_nodes(page_address(engine, id + (uint32_t)i), rest, found) < 0)
            return i;
        if (node_index(engine, found[i % CHUNK]) !=
            (int)page_node(page_record(engine, id + (uint32_t)i)))
            return i;
    }
    return n;
}

int page_kinds(const ksmpy_engine *engine, uint32_t id, uint64_t n, uint8_t *kinds)
{
    int pagemap_fd = engine->fz.pagemap_fd;
    int error = os_pages(pagemap_fd, page_address(engine, id), n, kinds);
    for (uint64_t i = 0; i < n && !error; i++) {
        enum page_state state = page_state(page_record(engine, id + (uint32_t)i));
        if (kinds[i] == OS_PAGE_UNTOLD && state != PAGE_SHARED && state != PAGE_ZERO)
            kinds[i] = OS_PAGE_ANON;
    }
    return error ? error : os_tell_pages(pagemap_fd, page_address(engine, id), n, kinds);
}

void page_become(ksmpy_engine *engine, uint32_t id, enum page_state state, uint32_t link)
{
    struct page *page = page_record(engine, id);
    struct region *region = region_at(engine, region_of(engine, id));
    enum page_state old = page_state(page);
    engine->pages_in[old]--;
    engine->pages_in[state]++;
    region->pages_in[old]--;
    region->pages_in[state]++;
    page_set_state(page, state);
    page->link = link;
}

void page_withdraw(ksmpy_engine *engine, uint32_t id)
{
    if (page_waits(page_record(engine, id)))
        unstable_remove(engine, id);
}

void page_share(ksmpy_engine *engine, uint32_t id, uint32_t frame)
{
    page_withdraw(engine, id);
    page_become(engine, id, PAGE_SHARED, frame);
    page_set_age(page_record(engine, id), 0);
}

void page_keep_frame(ksmpy_engine *engine, uint32_t id)
{
    engine->astray |= engine->forked;
    pins_add(engine, page_record(engine, id)->link);
}

void page_abandon(ksmpy_engine *engine, uint32_t id, enum page_state state)
{
    page_keep_frame(engine, id);
    page_unshare(engine, id, state);
}

void page_unshare(ksmpy_engine *engine, uint32_t id, enum page_state state)
{
    struct store *store = &engine->store;
    uint32_t frame = page_record(engine, id)->link;
    page_become(engine, id, state, NO_INDEX);
    if (engine->forked)
        return;
    bool locked = store_lock(store);
    const struct frame *record = frame_at(store, frame);
    if (is_full(store, record))
        unstable_wake(engine, record->tree, record->sum);
    store_leave(store, frame);
    if (locked)
        store_unlock(store);
}
