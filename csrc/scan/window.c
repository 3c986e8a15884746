/*
 * Where a pass is, and what the page tables say about the pages there.
 *
 * They are asked about a window at a time.  With tracking, an answer is given
 * once: the kernel forgets that a page was written when it has told us, so what
 * was not visited when a pass is cut short must be remembered here.
 */
#include <string.h>

#include "base/pages.h"
#include "engine/engine.h"
#include "ksmpy.h"
#include "os/arena.h"
#include "os/numa.h"
#include "os/pagemap.h"

#define RANGES 256

/*
 * Pages of the window that were not visited yet: the kernel will not tell again that they were
 * written.
 */
static void remember_written(ksmpy_engine *engine)
{
    const struct cursor *cursor = &engine->cursor;
    if (!engine->tracked || cursor->region == NO_REGION || !cursor->window_n)
        return;
    struct region *region = region_at(engine, cursor->region);
    for (uint64_t i = cursor->page; i < cursor->window + cursor->window_n; i++) {
        uint32_t id = region->base + (uint32_t)i;
        region->unsure |= has_bit(cursor->copied, i - cursor->window);
        if (!has_bit(cursor->written, i - cursor->window) ||
            has_bit(cursor->zero, i - cursor->window) || is_shared(engine, id))
            continue;
        page_withdraw(engine, id);
        page_become(engine, id, PAGE_SEEN, NO_INDEX);
    }
}

void cursor_page_shared(ksmpy_engine *engine, uint32_t id)
{
    struct cursor *cursor = &engine->cursor;
    if (cursor->region != region_of(engine, id))
        return;
    uint64_t i = id - region_at(engine, cursor->region)->base - cursor->window;
    if (i < cursor->window_n)
        cursor->copied[i / 64] &= ~((uint64_t)1 << (i % 64));
}

void cursor_reset(ksmpy_engine *engine)
{
    remember_written(engine);
    engine->cursor.region = engine->first_region;
    engine->cursor.begun = false;
    engine->cursor.page = 0;
    engine->cursor.window_n = 0;
}

void cursor_leave(ksmpy_engine *engine, uint32_t region)
{
    struct cursor *cursor = &engine->cursor;
    if (cursor->region != region)
        return;
    cursor->region = region_at(engine, region)->next;
    cursor->page = 0;
    cursor->window_n = 0;
}

/* ---- what was written ---- */

static void set_bits(uint64_t *bits, uint64_t first, uint64_t end)
{
    for (uint64_t i = first; i < end; i++)
        bits[i / 64] |= (uint64_t)1 << (i % 64);
}

/* first and end are counted from the page with that id. */
static void set_bits_of_copies(const ksmpy_engine *engine, uint32_t id, uint64_t *bits,
                               uint64_t first, uint64_t end)
{
    uint8_t kinds[CHUNK];
    for (uint64_t part; first < end; first += part) {
        part = least(end - first, CHUNK);
        bool known = page_kinds(engine, id + (uint32_t)first, part, kinds) == 0;
        for (uint64_t i = 0; i < part; i++)
            if (!known || kinds[i] == OS_PAGE_ANON)
                set_bits(bits, first + i, first + i + 1);
    }
}

typedef int64_t question(int pagemap_fd, uintptr_t address, uint64_t n, struct os_range *ranges,
                         int64_t max, uintptr_t *next);

/*
 * Sets a bit in each map for those of the region's pages [first, last) that the kernel names; zero
 * may be NULL.
 */
static void ask(const ksmpy_engine *engine, question *about, const struct region *region,
                uint64_t first, uint64_t last, uint64_t *bits, uint64_t *zero)
{
    struct os_range ranges[RANGES];
    uint32_t id = region->base + (uint32_t)engine->cursor.window;
    uintptr_t address = region->address + bytes_of(engine->cursor.window);
    uintptr_t at = region->address + bytes_of(first), end = region->address + bytes_of(last);
    while (at < end) {
        uintptr_t next = end;
        int64_t count =
            about(engine->fz.pagemap_fd, at, (end - at) >> PAGE_SHIFT, ranges, RANGES, &next);
        for (int64_t i = 0; i < count; i++) {
            uint64_t from = (ranges[i].start - address) >> PAGE_SHIFT,
                     to = (ranges[i].end - address) >> PAGE_SHIFT;
            if (ranges[i].swapped && about == os_private)
                set_bits_of_copies(engine, id, bits, from, to);
            else
                set_bits(bits, from, to);
            if (zero && ranges[i].zero)
                set_bits(zero, from, to);
        }
        if (count < 0 || next <= at)
            return; /* nothing is known to be written: the frozen comparison stays the judge */
        at = next;
    }
}

/* Was an overlay of the window written, or mapped since it was last asked about? */
static bool overlay_written(const ksmpy_engine *engine, const struct region *region)
{
    const struct cursor *cursor = &engine->cursor;
    uint32_t id = region->base + (uint32_t)cursor->window;
    for (uint64_t i = 0; i < cursor->window_n; i++)
        if (i % 64 == 0 && !cursor->written[i / 64])
            i += 63;
        else if (has_bit(cursor->written, i) && is_shared(engine, id + (uint32_t)i))
            return true;
    return false;
}

static void ask_private(ksmpy_engine *engine, const struct region *region, bool everywhere)
{
    struct cursor *cursor = &engine->cursor;
    uint64_t end = cursor->window + cursor->window_n;
    for (uint64_t at = cursor->window, next; at < end; at = next) {
        next = (at | (CHUNK - 1)) + 1;
        next = next < end ? next : end;
        if (everywhere || chunk_of(engine, region->base + (uint32_t)at)->blind)
            ask(engine, os_private, region, at, next, cursor->copied, NULL);
    }
}

static bool all_written(const struct cursor *cursor, uint64_t at, uint64_t n)
{
    for (uint64_t i = at; i < at + n; i++)
        if (!has_bit(cursor->written, i) || has_bit(cursor->zero, i))
            return false;
    return true;
}

/* They have been what they are for a pass; what is known of their older bytes is to be forgotten. */
static void forget_written(ksmpy_engine *engine, uint32_t id, uint64_t at, uint64_t n)
{
    struct cursor *cursor = &engine->cursor;
    for (uint64_t i = 0; i < n; i++)
        if (page_state(page_record(engine, id + (uint32_t)i)) <= PAGE_SEEN &&
            !has_bit(cursor->zero, at + i))
            cursor->written[(at + i) / 64] &= ~((uint64_t)1 << ((at + i) % 64));
}

/* Asks about the window's chunks, except for those that are better left alone. */
static void ask_chunks(ksmpy_engine *engine, const struct region *region, bool eager)
{
    struct cursor *cursor = &engine->cursor;
    enum chunk_look looks[WINDOW / CHUNK];
    uint64_t end = cursor->window + cursor->window_n, from = cursor->window;
    for (uint64_t at = 0; at < cursor->window_n; at += CHUNK) {
        uint64_t first = cursor->window + at, n = least(end - first, CHUNK);
        looks[at / CHUNK] = chunk_look(engine, region->base + (uint32_t)first, n, eager);
        if (looks[at / CHUNK] != CHUNK_REST)
            continue;
        set_bits(cursor->written, at, at + n);
        ask(engine, os_written, region, from, first, cursor->written, cursor->zero);
        from = first + n;
    }
    ask(engine, os_written, region, from, end, cursor->written, cursor->zero);
    for (uint64_t at = 0; at < cursor->window_n; at += CHUNK) {
        uint64_t first = cursor->window + at, n = least(end - first, CHUNK);
        uint32_t id = region->base + (uint32_t)first;
        if (looks[at / CHUNK] == CHUNK_SETTLED)
            forget_written(engine, id, at, n);
        if (looks[at / CHUNK] != CHUNK_REST)
            chunk_asked(engine, id, n, all_written(cursor, at, n));
    }
}

/*
 * What tracking says of overlays is a hint: which of their pages are copies by
 * now the kernel finds out by looking at each, which takes ten times longer.
 */
static void ask_tracking(ksmpy_engine *engine, const struct region *region, bool eager)
{
    ask_chunks(engine, region, eager);
    if (region->pages_in[PAGE_SHARED])
        ask_private(engine, region, region->unsure || overlay_written(engine, region));
}

static void ask_page_tables(ksmpy_engine *engine, uint32_t id, uint64_t n)
{
    struct cursor *cursor = &engine->cursor;
    uint8_t kinds[CHUNK];
    for (uint64_t at = 0; at < n; at += CHUNK) {
        uint64_t part = least(n - at, CHUNK);
        if (page_kinds(engine, id + (uint32_t)at, part, kinds) < 0)
            return;
        for (uint64_t i = 0; i < part; i++) {
            bool own = kinds[i] == OS_PAGE_ANON, zero = kinds[i] == OS_PAGE_ZERO;
            cursor->written[(at + i) / 64] |= (uint64_t)own << ((at + i) % 64);
            cursor->zero[(at + i) / 64] |= (uint64_t)zero << ((at + i) % 64);
            cursor->copied[(at + i) / 64] |= (uint64_t)(own || zero) << ((at + i) % 64);
        }
    }
}

/* A page that lies elsewhere now belongs in another tree. */
void page_move_to_node(ksmpy_engine *engine, uint32_t id, unsigned node)
{
    struct page *page = page_record(engine, id);
    if (page_node(page) == node)
        return;
    page_withdraw(engine, id);
    page_set_node(page, node);
}

static void ask_nodes(ksmpy_engine *engine, const struct region *region, uint64_t first, uint64_t n)
{
    int found[CHUNK];
    for (uint64_t at = 0; at < n; at += CHUNK) {
        uint64_t part = least(n - at, CHUNK);
        if (os_nodes(region->address + bytes_of(first + at), part, found) < 0)
            return;
        for (uint64_t i = 0; i < part; i++) {
            int node = node_index(engine, found[i]);
            if (node >= 0)
                page_move_to_node(engine, region->base + (uint32_t)(first + at + i),
                                  (unsigned)node);
        }
    }
}

void cursor_open_window(ksmpy_engine *engine, const struct region *region, bool eager)
{
    struct cursor *cursor = &engine->cursor;
    uint64_t rest = region->n - cursor->page;
    cursor->eager = eager;
    cursor->window = cursor->page;
    cursor->window_n = least(rest, WINDOW);
    memset(cursor->written, 0, sizeof cursor->written);
    memset(cursor->zero, 0, sizeof cursor->zero);
    memset(cursor->copied, 0, sizeof cursor->copied);
    if (engine->tracked)
        ask_tracking(engine, region, eager);
    else
        ask_page_tables(engine, region->base + (uint32_t)cursor->window, cursor->window_n);
    if (engine->nodes > 1 && !engine->injected_nodes)
        ask_nodes(engine, region, cursor->window, cursor->window_n);
}

/* What it makes of chunks that were left alone has to be asked about in the next pass. */
void cursor_turn_eager(ksmpy_engine *engine)
{
    struct cursor *cursor = &engine->cursor;
    uint32_t base = region_at(engine, cursor->region)->base;
    for (uint64_t at = 0; at < cursor->window_n; at += CHUNK)
        chunk_of(engine, base + (uint32_t)(cursor->window + at))->sampled = false;
    cursor->eager = true;
}

/*
 * Zeros come in long stretches, so their neighbours are asked about as well. The answer is good
 * for a slice of a pass: a page that is written after it was given will be found written.
 */
bool cursor_at_hole(ksmpy_engine *engine, uint32_t id)
{
    struct cursor *cursor = &engine->cursor;
    if (id - cursor->holes_first >= cursor->holes_n) {
        const struct region *region = region_at(engine, region_of(engine, id));
        uint64_t rest = region->n - (id - region->base);
        cursor->holes_first = id;
        cursor->holes_n = least(rest, CHUNK);
        if (os_pages(engine->fz.pagemap_fd, page_address(engine, id), cursor->holes_n,
                     cursor->kinds) < 0)
            cursor->holes_n = 0;
    }
    if (!cursor->holes_n)
        return false;
    uint8_t kind = cursor->kinds[id - cursor->holes_first];
    if (kind == OS_PAGE_UNTOLD) /* it was read since */
        os_pages(engine->fz.pagemap_fd, page_address(engine, id), 1, &kind);
    return kind == OS_PAGE_ZERO || kind == OS_PAGE_NONE;
}
