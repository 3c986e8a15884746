/*
 * When a frame may go.  Its last sharer in this process left, so no mapping of
 * ours shows it; but a child that was forked while it was mapped may still see
 * it, and then it stays, in its tree, ready to be shared again: a stale frame.
 */
#include "engine.h"

static void frame_free(ksmpy_engine *engine, uint32_t frame)
{
    stable_remove(engine, frame);
    store_free(&engine->store, frame);
}

void frame_leave(ksmpy_engine *engine, uint32_t frame)
{
    struct frame *record = frame_at(&engine->store, frame);
    if (record->sharers == engine->knobs[KSMPY_KNOB_MAX_PAGE_SHARING])
        unstable_wake(engine, record->tree, record->sum);
    if (--record->sharers)
        return;
    engine->shared_frames--;
    record->left = engine->store.leases.forks;
    if (store_leased(&engine->store, record))
        engine->stale_frames++;
    else
        frame_free(engine, frame);
}

/* Freed frames may have no record behind them. */
bool frame_is_live(const ksmpy_engine *engine, uint32_t frame)
{
    const struct store *store = &engine->store;
    if (frame >> store->span_shift >= (uint32_t)store->nodes)
        return false;
    uint32_t local = frame & (((uint32_t)1 << store->span_shift) - 1);
    return ids_has(&store->ids[frame_node(store, frame)], local) && frame_at(store, frame)->live;
}

static void follow_chunk(ksmpy_engine *engine, uint32_t first, uint64_t n)
{
    int found[CHUNK];
    if (os_nodes((uintptr_t)frame_bytes(&engine->store, first), n, found) < 0)
        return;
    for (uint64_t i = 0; i < n; i++) {
        uint32_t frame = first + (uint32_t)i;
        int node = node_index(engine, found[i]);
        if (!frame_is_live(engine, frame) || node < 0 ||
            node == frame_at(&engine->store, frame)->tree)
            continue;
        stable_remove(engine, frame);
        stable_add(engine, frame, node);
    }
}

void frames_follow_nodes(ksmpy_engine *engine)
{
    const struct store *store = &engine->store;
    if (engine->knobs[KSMPY_KNOB_MERGE_ACROSS_NODES] || engine->nodes == 1 ||
        engine->injected_nodes)
        return;
    for (int node = 0; node < engine->nodes; node++)
        for (uint64_t at = 0; at < store->ids[node].high; at += CHUNK) {
            uint64_t rest = store->ids[node].high - at;
            uint32_t first = (uint32_t)at + ((uint32_t)node << store->span_shift);
            follow_chunk(engine, first, rest < CHUNK ? rest : CHUNK);
        }
}

static uint32_t next_live(const ksmpy_engine *engine, int node, uint32_t local)
{
    const struct store *store = &engine->store;
    for (; local < store->ids[node].high; local++)
        if (frame_is_live(engine, local + ((uint32_t)node << store->span_shift)))
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
