/*
 * When a frame may go.  Its last sharer in this process left, so no mapping of
 * ours shows it; but a child that was forked while it was mapped may still see
 * it, and then it stays, in its tree, ready to be shared again: a stale frame.
 */
#include "engine.h"

static void frame_free(ksmpy_engine *engine, uint32_t frame)
{
    index_remove_frame(engine, frame);
    store_free(&engine->store, frame);
}

void frame_leave(ksmpy_engine *engine, uint32_t frame)
{
    struct frame *record = frame_at(&engine->store, frame);
    if (--record->sharers)
        return;
    engine->shared_frames--;
    record->left = engine->store.leases.forks;
    if (store_leased(&engine->store, record))
        engine->stale_frames++;
    else
        frame_free(engine, frame);
}

static uint32_t next_live(const ksmpy_engine *engine, int node, uint32_t local)
{
    const struct store *store = &engine->store;
    for (; local < store->ids[node].high; local++)
        if (ids_has(&store->ids[node], local) &&
            frame_at(store, local + ((uint32_t)node << store->span_shift))->live)
            return local;
    return NO_FRAME;
}

bool frames_reap(ksmpy_engine *engine)
{
    struct store *store = &engine->store;
    if (engine->stale_frames)
        store_update_leases(store);
    for (int node = 0; node < store->nodes && engine->stale_frames; node++) {
        uint32_t local = next_live(engine, node, 0);
        for (; local != NO_FRAME; local = next_live(engine, node, local + 1)) {
            uint32_t frame = local + ((uint32_t)node << store->span_shift);
            const struct frame *record = frame_at(store, frame);
            if (record->sharers == 0 && !store_leased(store, record)) {
                engine->stale_frames--;
                frame_free(engine, frame);
            }
        }
    }
    store_flush(store);
    return engine->stale_frames == 0;
}
