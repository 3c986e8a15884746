/* Pages join frames and leave them. */
#include "pages/sharing.h"

#include "os/arena.h"
#include "pages/candidates.h"
#include "pages/pages.h"
#include "pages/pins.h"
#include "pages/records.h"
#include "store/children.h"
#include "store/frames.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/store.h"

void page_share(struct pages *pages, uint32_t id, uint32_t frame)
{
    page_withdraw(pages, id);
    page_become(pages, id, PAGE_SHARED, frame);
    page_set_age(page_record(pages, id), 0);
    chunk_of(pages, id)->joined = true;
}

void page_keep_frame(struct pages *pages, uint32_t id)
{
    pages->astray |= pages->forked;
    pins_add(pages, page_record(pages, id)->link);
}

void page_unshare(struct pages *pages, uint32_t id, enum page_state state)
{
    struct store *store = &pages->store;
    uint32_t frame = page_record(pages, id)->link;
    page_become(pages, id, state, NO_INDEX);
    if (pages->forked)
        return;
    bool locked = store_lock(store);
    const struct frame *record = frame_at(store, frame);
    if (is_full(store, record))
        candidates_wake(pages, record->tree, record->sum);
    store_leave(store, frame);
    if (locked)
        store_unlock(store);
}

void page_abandon(struct pages *pages, uint32_t id, enum page_state state)
{
    page_keep_frame(pages, id);
    page_unshare(pages, id, state);
}

/*
 * A forked child's lease ends once it maps no frame any more: no page is shared, nothing went out
 * of sight, and its parent had no pinned frames, of which it may have inherited mappings.
 */
void sharing_end_lease(struct pages *pages)
{
    if (pages->forked && !pages->astray && !pages->pins.count && !pages->pages_in[PAGE_SHARED])
        store_end_lease(&pages->store);
}
