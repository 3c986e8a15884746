/*
 * Chunks of which a few pages are read, instead of asking what was written.
 *
 * Asking costs the owner of the memory: it protects the pages anew, each of them
 * then takes a fault at its next write, and a huge page falls apart at the first.
 * Of a chunk that is written all over between two passes that teaches nothing.
 * So the scanner reads a few of its pages, others each time, and only when one of
 * them has kept its checksum for a pass asks about the chunk, like about any other.
 * A huge page that was never asked about begins like that.
 *
 * A wrong guess costs time only: pages that are not asked about count as written.
 */
#include "scan/sample.h"

#include "merge/merger.h"
#include "os/guard.h"
#include "os/pagemap.h"
#include "pages/pages.h"

/*
 * Visits in a row that have to find every page of a chunk written before the next one reads
 * samples. Fewer would take a burst of writes for a habit; each costs the writer a fault for every
 * page.
 */
#define WRITE_HOT 3

/*
 * The checksum of the i-th sample of a chunk's n pages; of a page that cannot be read, a number
 * that differs from pass to pass.  Which page that is changes with the pass as well, by Fibonacci
 * hashing (Knuth, TAOCP vol. 3, 6.4) of its number.
 */
static uint32_t sample(const struct pages *pages, uint32_t id, uint64_t n, uint32_t i)
{
    uint32_t hash = (chunk_of(pages, id)->sampled_in * SAMPLES + i) * 0x9E3779B1u;
    uint32_t page = id + (uint32_t)(hash * n >> 32);
    uint64_t sum;
    return guard_checksum(&pages->store.key, (const void *)page_address(pages, page), &sum)
               ? (uint32_t)sum
               : ~hash;
}

static void take_samples(const struct pages *pages, uint32_t id, uint64_t n)
{
    struct chunk *chunk = chunk_of(pages, id);
    chunk->sampled = true;
    chunk->sampled_in = (uint32_t)pages->full_scans;
    for (uint32_t i = 0; i < SAMPLES; i++)
        chunk->samples[i] = sample(pages, id, n, i);
}

static unsigned unchanged_samples(const struct pages *pages, uint32_t id, uint64_t n)
{
    unsigned unchanged = 0;
    for (uint32_t i = 0; i < SAMPLES; i++)
        unchanged += sample(pages, id, n, i) == chunk_of(pages, id)->samples[i];
    return unchanged;
}

enum chunk_plan chunk_plan(const struct merger *merger, uint32_t id, uint64_t n, bool eager)
{
    struct chunk *chunk = chunk_of(merger->pages, id);
    bool fresh = !chunk->visited;
    chunk->visited = true;
    if (eager) {
        chunk->sampled = false;
        return CHUNK_ASK;
    }
    if (chunk->sampled) {
        unsigned unchanged = unchanged_samples(merger->pages, id, n);
        chunk->sampled = false;
        chunk->write_hot = 0;
        if (unchanged)
            return unchanged == SAMPLES ? CHUNK_SETTLED : CHUNK_ASK;
    } else if (!fresh || n < CHUNK ||
               !os_is_huge(merger->fz.pagemap_fd, page_address(merger->pages, id))) {
        return CHUNK_ASK;
    }
    take_samples(merger->pages, id, n);
    return CHUNK_WRITE_HOT;
}

void chunk_asked(const struct pages *pages, uint32_t id, uint64_t n, bool all_written)
{
    struct chunk *chunk = chunk_of(pages, id);
    if (!all_written)
        chunk->write_hot = 0;
    else if (chunk->write_hot < WRITE_HOT)
        chunk->write_hot++;
    if (chunk->write_hot == WRITE_HOT)
        take_samples(pages, id, n);
}
