/*
 * Frames whose overlays went out of sight: their owner has unmapped them, or moved them somewhere.
 * Such a frame is pinned until a look at all mappings of the process finds none of it, and again in
 * the next passes: a look takes time, and an overlay that is moved meanwhile can escape it.
 */
#include "base/pages.h"
#include "engine/engine.h"
#include "ksmpy.h"
#include "os/arena.h"
#include "os/maps.h"
#include "store/store.h"

#define LOOKS 3

struct pin {
    uint32_t frame;
    uint32_t unseen; /* looks in a row that found no mapping of it */
};

/* In a forked child the store is the parent's, and what the child maps its lease keeps. */
void pins_add(ksmpy_engine *engine, uint32_t frame)
{
    uint64_t limit = frame_limit(&engine->store);
    if (!engine->forked)
        store_pin(&engine->store, frame);
    if (!engine->pins.base && arena_init(&engine->pins, sizeof(struct pin), limit) < 0)
        engine->pins_unlisted = true;
    else if (arena_grow(&engine->pins, engine->pin_count + 1) < 0)
        engine->pins_unlisted = true;
    else
        *(struct pin *)arena_at(&engine->pins, engine->pin_count++) = (struct pin){frame, 0};
}

void pins_inherit(ksmpy_engine *engine)
{
    for (uint64_t i = 0; i < engine->pin_count; i++) {
        struct pin *pin = arena_at(&engine->pins, i);
        pin->unseen = 0;
        if (frame_is_live(&engine->store, pin->frame))
            store_pin(&engine->store, pin->frame);
    }
}

void pins_forget(ksmpy_engine *engine)
{
    arena_destroy(&engine->pins);
    arena_destroy(&engine->pins_seen);
    engine->pin_count = 0;
}

static struct pin *pin_at(const ksmpy_engine *engine, uint64_t i)
{
    return arena_at(&engine->pins, i);
}

static uint64_t *word_of(const ksmpy_engine *engine, uint32_t frame)
{
    return arena_at(&engine->pins_seen, frame / 64);
}

/* No frame with a pin of ours has been seen. */
static bool begin_look(ksmpy_engine *engine)
{
    uint64_t words = frame_limit(&engine->store) / 64 + 1, end = 0;
    if (!engine->pins_seen.base && arena_init(&engine->pins_seen, sizeof(uint64_t), words) < 0)
        return false;
    for (uint64_t i = 0; i < engine->pin_count; i++)
        end = pin_at(engine, i)->frame > end ? pin_at(engine, i)->frame : end;
    if (arena_grow(&engine->pins_seen, end / 64 + 1) < 0)
        return false;
    for (uint64_t i = 0; i < engine->pin_count; i++)
        *word_of(engine, pin_at(engine, i)->frame) = 0;
    return true;
}

static void see(ksmpy_engine *engine, const struct os_vma *vma)
{
    const struct store *store = &engine->store;
    uint64_t end = engine->pins_seen.committed * 64;
    uint64_t first = (vma->offset - store->offset) >> PAGE_SHIFT;
    uint64_t n = (vma->end - vma->start) >> PAGE_SHIFT;
    for (uint64_t frame = first; frame < first + n && frame < end; frame++)
        if (frame_is_live(store, (uint32_t)frame) && frame_at(store, (uint32_t)frame)->pins)
            *word_of(engine, (uint32_t)frame) |= (uint64_t)1 << (frame % 64);
}

/* The engine's own views are shared mappings, overlays are private ones, whatever their rights. */
static bool see_all(ksmpy_engine *engine)
{
    struct os_vma vma;
    uintptr_t at = 0;
    int found;
    os_maps_refresh(&engine->maps);
    while ((found = os_maps_find(&engine->maps, at, &vma)) > 0) {
        if (shows_store(engine, &vma) && !vma.shared && vma.offset >= engine->store.offset)
            see(engine, &vma);
        at = vma.end;
    }
    return found == 0;
}

void pins_look(ksmpy_engine *engine)
{
    uint64_t kept = 0;
    if (!engine->pin_count || !begin_look(engine) || !see_all(engine) ||
        !store_lock(&engine->store))
        return;
    for (uint64_t i = 0; i < engine->pin_count; i++) {
        struct pin pin = *pin_at(engine, i);
        bool seen = *word_of(engine, pin.frame) >> (pin.frame % 64) & 1;
        pin.unseen = seen ? 0 : pin.unseen + 1;
        if (pin.unseen < LOOKS)
            *pin_at(engine, kept++) = pin;
        else
            store_unpin(&engine->store, pin.frame);
    }
    engine->pin_count = kept;
    engine->store.pinned = kept || engine->pins_unlisted;
    store_unlock(&engine->store);
}
