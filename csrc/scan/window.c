/*
 * Where a pass is, and what the page tables say about the pages there.
 *
 * They are asked about a window at a time.  With tracking, an answer is given
 * once: the kernel forgets that a page was written when it has told us, so what
 * was not visited when a pass is cut short must be remembered here.
 */
#include "scan/window.h"

#include <errno.h>
#include <string.h>

#include "base/pages.h"
#include "merge/kinds.h"
#include "merge/merger.h"
#include "merge/refusal.h"
#include "merge/run.h"
#include "os/arena.h"
#include "os/numa.h"
#include "os/pagemap.h"
#include "os/proc_maps.h"
#include "os/write_tracking.h"
#include "pages/candidates.h"
#include "pages/overlay.h"
#include "pages/pages.h"
#include "pages/records.h"
#include "scan/chunk_plan.h"
#include "scan/scanner.h"

#define RANGES 256

/*
 * Notes in the records which pages of the window were written and not visited yet, since the kernel
 * will not tell that again.
 */
static void remember_written(struct scanner *scanner)
{
    const struct window *window = &scanner->window;
    if (!scanner->pages->tracked || window->region == NO_REGION || !window->n)
        return;
    struct region *region = region_at(scanner->pages, window->region);
    for (uint64_t i = window->at; i < window->first + window->n; i++) {
        uint32_t id = region->base + (uint32_t)i;
        region->unsure |= has_bit(window->copied, i - window->first);
        if (!has_bit(window->written, i - window->first) ||
            has_bit(window->zero, i - window->first) || is_shared(scanner->pages, id))
            continue;
        page_withdraw(scanner->pages, id);
        page_become(scanner->pages, id, PAGE_SEEN, NO_INDEX);
    }
}

/* The id of the page that the window begins with. */
static uint32_t first_id(const struct scanner *scanner)
{
    return region_at(scanner->pages, scanner->window.region)->base +
           (uint32_t)scanner->window.first;
}

struct outlook window_outlook(const struct scanner *scanner)
{
    const struct window *window = &scanner->window;
    return (struct outlook){window->eager, first_id(scanner), window->n, window->written};
}

void window_pages_merged(struct scanner *scanner, uint32_t id, uint64_t n)
{
    struct window *window = &scanner->window;
    uint32_t first = window->n ? first_id(scanner) : 0;
    for (uint32_t page = id; page < id + n; page++) {
        uint64_t i = page - first;
        if (i < window->n && is_shared(scanner->pages, page))
            window->copied[i / 64] &= ~((uint64_t)1 << (i % 64));
    }
}

void window_reset(struct scanner *scanner)
{
    remember_written(scanner);
    scanner->window.region = scanner->pages->first_region;
    scanner->window.begun = false;
    scanner->window.at = 0;
    scanner->window.n = 0;
}

void window_leave_region(struct scanner *scanner, uint32_t region)
{
    struct window *window = &scanner->window;
    if (window->region != region)
        return;
    window->region = region_at(scanner->pages, region)->next;
    window->at = 0;
    window->n = 0;
}

/* ---- what was written ---- */

static void set_bits(uint64_t *bits, uint64_t first, uint64_t end)
{
    for (uint64_t i = first; i < end; i++)
        bits[i / 64] |= (uint64_t)1 << (i % 64);
}

/*
 * Sets the bits of pages [first, end), counted from the one with that id, that are private memory.
 * If nobody can tell they are taken to be.
 */
static void set_bits_of_copies(const struct merger *merger, uint32_t id, uint64_t *bits,
                               uint64_t first, uint64_t end)
{
    uint8_t kinds[CHUNK];
    for (uint64_t part; first < end; first += part) {
        part = least(end - first, CHUNK);
        bool known = page_kinds(merger, id + (uint32_t)first, part, kinds) == 0;
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
static void ask(const struct scanner *scanner, question *about, const struct region *region,
                uint64_t first, uint64_t last, uint64_t *bits, uint64_t *zero)
{
    struct os_range ranges[RANGES];
    uint32_t id = region->base + (uint32_t)scanner->window.first;
    uintptr_t address = region->address + bytes_of(scanner->window.first);
    uintptr_t at = region->address + bytes_of(first), end = region->address + bytes_of(last);
    while (at < end) {
        uintptr_t next = end;
        int64_t count = about(scanner->merger->fz.pagemap_fd, at, (end - at) >> PAGE_SHIFT, ranges,
                              RANGES, &next);
        for (int64_t i = 0; i < count; i++) {
            uint64_t from = (ranges[i].start - address) >> PAGE_SHIFT,
                     to = (ranges[i].end - address) >> PAGE_SHIFT;
            if (ranges[i].swapped && about == os_private)
                set_bits_of_copies(scanner->merger, id, bits, from, to);
            else
                set_bits(bits, from, to);
            if (zero && ranges[i].zero)
                set_bits(zero, from, to);
        }
        if (count < 0 || next <= at)
            return; /* the rest counts as unwritten; pages are compared when they are frozen */
        at = next;
    }
}

/* Was an overlay of the window written, or mapped since it was last asked about? */
static bool overlay_written(const struct scanner *scanner, const struct region *region)
{
    const struct window *window = &scanner->window;
    uint32_t id = region->base + (uint32_t)window->first;
    for (uint64_t i = 0; i < window->n; i++)
        if (i % 64 == 0 && !window->written[i / 64])
            i += 63;
        else if (has_bit(window->written, i) && is_shared(scanner->pages, id + (uint32_t)i))
            return true;
    return false;
}

static void ask_private(struct scanner *scanner, const struct region *region, bool everywhere)
{
    struct window *window = &scanner->window;
    uint64_t end = window->first + window->n;
    for (uint64_t at = window->first, next; at < end; at = next) {
        next = (at | (CHUNK - 1)) + 1;
        next = next < end ? next : end;
        bool put_off = window->put_off >> (at - window->first) / CHUNK & 1;
        bool may_be =
            everywhere || chunk_of(scanner->pages, region->base + (uint32_t)at)->untracked;
        if (may_be && !put_off)
            ask(scanner, os_private, region, at, next, window->copied, NULL);
    }
}

/* Was a page of that state asked about before, and had bytes of its owner's then? */
static bool is_known(enum page_state state)
{
    return state != PAGE_NEW && state != PAGE_ZERO && state != PAGE_HOLE;
}

/* What the window says of n of its pages from at on, which are a chunk. */
static struct chunk_answer answer_of(const struct scanner *scanner, const struct region *region,
                                     uint64_t at, uint64_t n)
{
    const struct window *window = &scanner->window;
    uint32_t id = region->base + (uint32_t)(window->first + at);
    uint64_t any = 0, written = 0, uncopied = 0;
    bool left_frames = false;
    for (uint64_t i = at / 64; i < (at + n + 63) / 64; i++) {
        any |= window->written[i];
        written += (uint64_t)__builtin_popcountll(window->written[i] & ~window->zero[i]);
    }
    bool all = written == n;
    uint16_t again = 0;
    for (uint64_t i = 0; any && !all && i < n; i++)
        again += has_bit(window->written, at + i) && !has_bit(window->zero, at + i) &&
                 is_known(page_state(page_record(scanner->pages, id + (uint32_t)i)));
    for (uint64_t i = 0; all && region->pages_in[PAGE_SHARED] && i < n; i++)
        uncopied += is_shared(scanner->pages, id + (uint32_t)i) && !has_bit(window->copied, at + i);
    for (uint64_t i = 0; region->pages_in[PAGE_SHARED] && !left_frames && i < n; i++)
        left_frames =
            is_shared(scanner->pages, id + (uint32_t)i) && has_bit(window->copied, at + i);
    return (struct chunk_answer){any != 0, all, all && !uncopied, again, left_frames};
}

/*
 * Clears the marks of a chunk whose samples say that it has not changed for a pass, so that its
 * pages are looked up now.  Pages in the index or on frames keep theirs, as what is known of those is
 * older; and so do those that are not tracked.
 */
static void forget_written(struct scanner *scanner, uint32_t id, uint64_t at, uint64_t n)
{
    struct window *window = &scanner->window;
    for (uint64_t i = 0; i < n; i++)
        if (page_state(page_record(scanner->pages, id + (uint32_t)i)) <= PAGE_SEEN &&
            !has_bit(window->zero, at + i) && !has_bit(window->untracked, at + i))
            window->written[(at + i) / 64] &= ~((uint64_t)1 << ((at + i) % 64));
}

/*
 * Of pages [at, end) of the window those on frames where no overlay is: their owner has other memory
 * there, which may not be touched yet.
 */
static void ask_replaced(struct scanner *scanner, const struct region *region, uint64_t at,
                         uint64_t end)
{
    struct pages *pages = scanner->pages;
    struct window *window = &scanner->window;
    uint32_t id = region->base + (uint32_t)window->first;
    uintptr_t begin = region->address + bytes_of(window->first);
    struct os_vma vma;
    if (at < end)
        os_maps_refresh(&pages->maps);
    for (uint64_t next; at < end; at = next) {
        if (os_maps_find(&pages->maps, begin + bytes_of(at), &vma) <= 0)
            return;
        next = least(end, (vma.end - begin) >> PAGE_SHIFT);
        bool replaced = vma.start <= begin + bytes_of(at) && !shows_store(pages, &vma);
        for (; replaced && at < next; at++)
            if (is_shared(pages, id + (uint32_t)at))
                set_bits(window->copied, at, at + 1);
    }
}

/*
 * Of pages [first, last) of the region those that are not tracked, and no overlays, count as written:
 * their owner has unmapped them, and has other memory there, as numpy has for one temporary array
 * after another.  None of them can be frozen, and to find that out page by page takes 20 system calls
 * for each.
 */
static void ask_untracked(struct scanner *scanner, const struct region *region, uint64_t first,
                          uint64_t last)
{
    struct window *window = &scanner->window;
    uint32_t id = region->base + (uint32_t)window->first;
    uint64_t found = 0, shared = UINT64_MAX, shared_end = 0;
    ask(scanner, os_untracked, region, first, last, window->untracked, window->zero);
    for (uint64_t i = first - window->first; i < last - window->first; i++)
        if (i % 64 == 0 && !window->untracked[i / 64]) {
            i += 63;
        } else if (has_bit(window->untracked, i) && is_shared(scanner->pages, id + (uint32_t)i)) {
            shared = least(shared, i);
            shared_end = i + 1;
        } else if (has_bit(window->untracked, i)) {
            set_bits(window->written, i, i + 1);
            found++;
        }
    ask_replaced(scanner, region, shared, shared_end);
    if (found)
        count_refusal(scanner->merger, -ECANCELED, found);
}

/*
 * Asks what was written of a region's pages [first, last).  Stretches of overlays as long as a huge
 * page are asked about on their own, as os_arm_written_there() says.
 */
static void ask_written(struct scanner *scanner, const struct region *region, uint64_t first,
                        uint64_t last)
{
    uint64_t *written = scanner->window.written, *zero = scanner->window.zero, start = first;
    for (uint64_t at = first, n; at < last && region->pages_in[PAGE_SHARED]; at += n) {
        uint32_t id = region->base + (uint32_t)at;
        n = pages_alike(scanner->pages, id, last - at, PAGE_SHARED);
        if (n < HUGE_PAGES || !is_shared(scanner->pages, id))
            continue;
        ask(scanner, os_arm_written, region, first, at, written, zero);
        ask(scanner, os_arm_written_there, region, at, at + n, written, zero);
        first = at + n;
    }
    ask(scanner, os_arm_written, region, first, last, written, zero);
    ask_untracked(scanner, region, start, last);
}

/* The plan that asks in the same way, for all that do. */
static enum chunk_plan way_to_ask(enum chunk_plan plan)
{
    switch (plan) {
    case CHUNK_SETTLED:
        return CHUNK_ASK;
    case CHUNK_LEFT_ALONE:
        return CHUNK_WRITE_HOT;
    default:
        return plan;
    }
}

/* Asks about [at, end) of the window, whose chunks' plans all ask in this way. */
static void ask_stretch(struct scanner *scanner, const struct region *region, enum chunk_plan plan,
                        uint64_t at, uint64_t end)
{
    struct window *window = &scanner->window;
    uint64_t first = window->first + at, last = window->first + end;
    if (plan == CHUNK_WRITE_HOT)
        set_bits(window->written, at, end);
    else if (plan == CHUNK_LOOK)
        ask(scanner, os_written, region, first, last, window->written, window->zero);
    else if (plan == CHUNK_ASK)
        ask_written(scanner, region, first, last);
}

/* Asks about the window's chunks, except for those that are better left alone. */
static void ask_chunks(struct scanner *scanner, const struct region *region, enum chunk_plan *plans,
                       bool eager)
{
    struct window *window = &scanner->window;
    uint64_t from = 0;
    for (uint64_t at = 0; at < window->n; at += CHUNK) {
        uint64_t first = window->first + at, n = least(window->n - at, CHUNK);
        plans[at / CHUNK] = chunk_plan(scanner, region->base + (uint32_t)first, n, eager);
        bool put_off = plans[at / CHUNK] == CHUNK_PUT_OFF;
        if (put_off)
            window->put_off |= 1u << at / CHUNK;
        if (put_off || plans[at / CHUNK] == CHUNK_LEFT_ALONE)
            window->left_alone |= 1u << at / CHUNK;
        if (way_to_ask(plans[from / CHUNK]) == way_to_ask(plans[at / CHUNK]))
            continue;
        ask_stretch(scanner, region, way_to_ask(plans[from / CHUNK]), from, at);
        from = at;
    }
    ask_stretch(scanner, region, way_to_ask(plans[from / CHUNK]), from, window->n);
}

/* What the answers mean for the next visit; a chunk that was only looked at is armed for it. */
static void note_answers(struct scanner *scanner, const struct region *region,
                         const enum chunk_plan *plans)
{
    const struct window *window = &scanner->window;
    for (uint64_t at = 0; at < window->n; at += CHUNK) {
        uint64_t first = window->first + at, n = least(window->n - at, CHUNK);
        uint32_t id = region->base + (uint32_t)first;
        enum chunk_plan plan = plans[at / CHUNK];
        if (!is_asked(plan))
            continue;
        if (plan == CHUNK_SETTLED)
            forget_written(scanner, id, at, n);
        struct chunk_answer answer = answer_of(scanner, region, at, n);
        bool hot = chunk_asked(scanner, id, n, answer);
        if (plan == CHUNK_LOOK && answer.any_written && !hot)
            ask_written(scanner, region, first, first + n);
    }
}

/*
 * Tracking only hints at which overlays were written.  To tell which of their
 * pages are copies by now the kernel has to look at each of them, which takes
 * ten times longer: so that is asked only where there is a hint.
 */
static void ask_tracking(struct scanner *scanner, const struct region *region, bool eager)
{
    enum chunk_plan plans[WINDOW / CHUNK];
    ask_chunks(scanner, region, plans, eager);
    if (region->pages_in[PAGE_SHARED])
        ask_private(scanner, region, region->unsure || overlay_written(scanner, region));
    note_answers(scanner, region, plans);
}

static void ask_page_tables(struct scanner *scanner, const struct region *region)
{
    struct window *window = &scanner->window;
    uint32_t id = region->base + (uint32_t)window->first;
    uint64_t shared = UINT64_MAX, shared_end = 0; /* pages on frames that are not there */
    uint8_t kinds[CHUNK];
    for (uint64_t at = 0; at < window->n; at += CHUNK) {
        uint64_t part = least(window->n - at, CHUNK);
        if (page_kinds(scanner->merger, id + (uint32_t)at, part, kinds) < 0)
            break;
        for (uint64_t i = 0; i < part; i++) {
            bool own = kinds[i] == OS_PAGE_ANON, zero = kinds[i] == OS_PAGE_COMMON;
            window->written[(at + i) / 64] |= (uint64_t)own << ((at + i) % 64);
            window->zero[(at + i) / 64] |= (uint64_t)zero << ((at + i) % 64);
            window->copied[(at + i) / 64] |= (uint64_t)(own || zero) << ((at + i) % 64);
            if (kinds[i] == OS_PAGE_NONE && is_shared(scanner->pages, id + (uint32_t)(at + i))) {
                shared = least(shared, at + i);
                shared_end = at + i + 1;
            }
        }
    }
    ask_replaced(scanner, region, shared, shared_end);
}

static void ask_nodes(struct pages *pages, const struct region *region, uint64_t first, uint64_t n)
{
    int found[CHUNK];
    for (uint64_t at = 0; at < n; at += CHUNK) {
        uint64_t part = least(n - at, CHUNK);
        if (os_nodes(region->address + bytes_of(first + at), part, found) < 0)
            return;
        for (uint64_t i = 0; i < part; i++) {
            int node = node_index(pages, found[i]);
            if (node >= 0)
                page_move_to_node(pages, region->base + (uint32_t)(first + at + i), (unsigned)node);
        }
    }
}

void window_open(struct scanner *scanner, const struct region *region, bool eager)
{
    struct window *window = &scanner->window;
    uint64_t rest = region->n - window->at;
    window->eager = eager;
    window->first = window->at;
    window->n = least(rest, WINDOW);
    memset(window->written, 0, sizeof window->written);
    memset(window->zero, 0, sizeof window->zero);
    memset(window->copied, 0, sizeof window->copied);
    memset(window->untracked, 0, sizeof window->untracked);
    window->left_alone = window->put_off = 0;
    if (scanner->pages->tracked)
        ask_tracking(scanner, region, eager);
    else
        ask_page_tables(scanner, region);
    if (scanner->pages->nodes > 1 && !scanner->pages->injected_nodes)
        ask_nodes(scanner->pages, region, window->first, window->n);
}

/*
 * In an eager pass pages of write-hot chunks are looked up and merged as well, so the next pass has
 * to ask what was written there instead of reading samples; and what was put off is asked now.
 */
void window_turn_eager(struct scanner *scanner)
{
    struct window *window = &scanner->window;
    const struct region *region = region_at(scanner->pages, window->region);
    for (uint64_t at = 0; at < window->n; at += CHUNK) {
        uint64_t first = window->first + at, n = least(window->n - at, CHUNK);
        chunk_of(scanner->pages, region->base + (uint32_t)first)->sampled = false;
        if (first >= window->at && window->put_off >> at / CHUNK & 1)
            ask_written(scanner, region, first, first + n);
    }
    bool put_off = window->put_off != 0;
    window->left_alone = window->put_off = 0; /* ask_private() passes over what is put off */
    if (put_off && region->pages_in[PAGE_SHARED])
        ask_private(scanner, region, true);
    window->eager = true;
}

/*
 * Zeros come in long stretches, so their neighbours are asked about as well. The answer is good
 * for a slice of a pass: a page that is written after it was given will be found written.
 */
bool window_at_hole(struct scanner *scanner, uint32_t id)
{
    struct window *window = &scanner->window;
    if (id - window->holes_first >= window->holes_n) {
        const struct region *region = region_at(scanner->pages, region_of(scanner->pages, id));
        uint64_t rest = region->n - (id - region->base);
        window->holes_first = id;
        window->holes_n = least(rest, CHUNK);
        if (os_pages(scanner->merger->fz.pagemap_fd, page_address(scanner->pages, id),
                     window->holes_n, window->kinds) < 0)
            window->holes_n = 0;
    }
    if (!window->holes_n)
        return false;
    uint8_t kind = window->kinds[id - window->holes_first];
    if (kind == OS_PAGE_UNTOLD) /* the page has been read since then, so it can be told now */
        os_pages(scanner->merger->fz.pagemap_fd, page_address(scanner->pages, id), 1, &kind);
    return kind == OS_PAGE_COMMON || kind == OS_PAGE_NONE;
}
