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
 * Memory that rests for some passes and is then written all over again would be asked
 * about each time, and merged.  So such a chunk is distrusted: where the scanner works
 * in the background (KSMPY_SCAN_BACK_OFF) a sample has to keep its checksum for longer
 * than a pass, at first for a quarter of a second, and then for longer than the chunk
 * has rested before.  Trust comes back where it rests for longer than is ever asked for.
 *
 * Memory of which a part is written all the time has to be asked about, for the sake of
 * the other part.  That is put off for as long as makes it cheap, in the background: the
 * more pages of all such chunks are written again, the longer.  What is written there
 * meanwhile is found when the time has come, and pages that wait go on waiting.
 *
 * Pages here and there in a heap rest for a pass, are merged, and are written again, several times a
 * second: to merge them and to undo it costs a hundred times as much as a fault, and saves nothing.
 * So a chunk of which that is seen is put off as well, for longer each time, until it rests.
 *
 * A wrong guess costs time only: pages that are not asked about count as written, or as they were.
 */
#include "scan/chunk_plan.h"

#include "base/pages.h"
#include "merge/merger.h"
#include "os/guard.h"
#include "os/pagemap.h"
#include "pages/pages.h"

/*
 * Visits in a row that have to find every page of a chunk written before the next one reads
 * samples, or a part of them before the next one is put off.  Fewer would take a burst of writes for
 * a habit; each costs the writer a fault for every page.
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

/*
 * The time in ticks of 17 ms, which begins anew after 18 minutes.  Memory that rested for as long,
 * or for little more, is distrusted a bit.
 */
#define TICK_NS ((uint64_t)1 << 24)

static uint16_t ticks_now(const struct scanner *scanner)
{
    return (uint16_t)(scanner->merger->slice_began_ns / TICK_NS);
}

/*
 * How long a distrusted chunk has to rest, in ticks: 0.25 s, twice as long for each step, 4 s at
 * most.  So memory that a program initialises and then loads is merged a quarter of a second later
 * than it could be, and memory that is rewritten less often than every 4 s is asked about as ever.
 */
#define FIRST_REST 15
#define MOST_DISTRUST 5

static uint16_t rest_wanted(unsigned distrust)
{
    return distrust ? (uint16_t)(FIRST_REST << (distrust - 1)) : 0;
}

/* For how many ticks nothing was found written there. */
static uint16_t rested(const struct scanner *scanner, const struct chunk *chunk)
{
    return (uint16_t)(ticks_now(scanner) - chunk->written_at);
}

static void take_samples(const struct scanner *scanner, uint32_t id, uint64_t n)
{
    const struct pages *pages = scanner->pages;
    struct chunk *chunk = chunk_of(pages, id);
    chunk->sampled = true;
    chunk->sampled_in = (uint16_t)pages->full_scans;
    chunk->written_at = ticks_now(scanner);
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

/* A chunk of which samples were taken: what they say now. */
static enum chunk_plan sampled_plan(const struct scanner *scanner, uint32_t id, uint64_t n)
{
    struct chunk *chunk = chunk_of(scanner->pages, id);
    bool known = scanner->backs_off && chunk->unsettled == n;
    unsigned unchanged = unchanged_samples(scanner->pages, id, n);
    bool rests = !scanner->backs_off || rested(scanner, chunk) >= rest_wanted(chunk->distrust);
    chunk->write_hot = 0;
    if (!unchanged)
        take_samples(scanner, id, n);
    if (!unchanged || !rests)
        return known ? CHUNK_LEFT_ALONE : CHUNK_WRITE_HOT;
    chunk->sampled = false;
    return unchanged == SAMPLES ? CHUNK_SETTLED : CHUNK_ASK;
}

/*
 * What its writer pays for a page that was protected in vain: a fault, and what the kernel does to
 * protect it anew.  They may take one part in so many of a processor's time.
 */
#define FAULT_NS 1500
#define SHARE 50

/*
 * For how many ticks after the last answer that told of writes a chunk is put off: because a part is
 * written again, or as merging it was undone.
 */
static uint64_t put_off_for(const struct scanner *scanner, const struct chunk *chunk)
{
    uint64_t pages = scanner->rewritten > scanner->rewritten_before ? scanner->rewritten
                                                                    : scanner->rewritten_before;
    uint64_t cheap = chunk->rewritten ? pages * FAULT_NS * SHARE / TICK_NS : 0;
    uint64_t rest = rest_wanted(chunk->churn);
    return least(cheap > rest ? cheap : rest, rest_wanted(MOST_DISTRUST));
}

void chunk_plan_end_pass(struct scanner *scanner)
{
    scanner->rewritten_before = scanner->rewritten;
    scanner->rewritten = 0;
}

enum chunk_plan chunk_plan(struct scanner *scanner, uint32_t id, uint64_t n, bool eager)
{
    struct chunk *chunk = chunk_of(scanner->pages, id);
    const struct region *region = region_at(scanner->pages, chunk->region);
    bool fresh = !chunk->visited;
    chunk->visited = true;
    if (eager) {
        chunk->sampled = false;
        return CHUNK_ASK;
    }
    if (chunk->sampled)
        return sampled_plan(scanner, id, n);
    if (fresh && n == CHUNK &&
        os_is_huge(scanner->merger->fz.pagemap_fd, page_address(scanner->pages, id))) {
        take_samples(scanner, id, n);
        return CHUNK_WRITE_HOT;
    }
    scanner->rewritten += chunk->rewritten;
    /* What a pass was told of an unsure region, and did not get to, is known when this one is over. */
    bool waits = scanner->backs_off && !region->unsure;
    if (waits && rested(scanner, chunk) < put_off_for(scanner, chunk))
        return CHUNK_PUT_OFF;
    /* What was not armed would count as written on frames as well. */
    bool looks = scanner->backs_off && chunk->distrust && chunk->quiet;
    return looks && !region->pages_in[PAGE_SHARED] ? CHUNK_LOOK : CHUNK_ASK;
}

/* The distrust of a chunk that was rewritten after it had rested for so many ticks. */
static uint8_t distrust_after(uint8_t before, uint16_t rest)
{
    if (rest > rest_wanted(MOST_DISTRUST))
        return 0;
    uint8_t distrust = before;
    do
        distrust += distrust < MOST_DISTRUST;
    while (before && distrust < MOST_DISTRUST && rest_wanted(distrust) <= rest);
    return distrust;
}

static void note_rewritten(struct chunk *chunk, struct chunk_answer answer)
{
    if (!answer.again && !answer.all_written)
        chunk->partly_hot = 0;
    else if (answer.again && chunk->partly_hot < WRITE_HOT)
        chunk->partly_hot++;
    chunk->rewritten = chunk->partly_hot == WRITE_HOT ? answer.again : 0;
}

/* Merged pages were written.  Is that again and again, and are they merged in between? */
static void note_churn(const struct scanner *scanner, struct chunk *chunk)
{
    uint16_t since = (uint16_t)(ticks_now(scanner) - chunk->churned_at);
    bool again = chunk->churned_at && since <= 2 * rest_wanted(MOST_DISTRUST);
    if (!chunk->joined)
        return;
    chunk->joined = false;
    chunk->churned_at = ticks_now(scanner) | 1;
    if (!again)
        chunk->churn = 0;
    else
        chunk->churn += chunk->churn < MOST_DISTRUST;
}

bool chunk_asked(const struct scanner *scanner, uint32_t id, uint64_t n, struct chunk_answer answer)
{
    struct chunk *chunk = chunk_of(scanner->pages, id);
    uint16_t rest = rested(scanner, chunk);
    if (!answer.all_written)
        chunk->write_hot = 0;
    else if (chunk->write_hot < WRITE_HOT)
        chunk->write_hot++;
    bool again = scanner->backs_off && chunk->quiet && answer.rewritten;
    if (again)
        chunk->distrust = distrust_after(chunk->distrust, rest) & 7;
    else if (!answer.any_written && rest > rest_wanted(MOST_DISTRUST))
        chunk->distrust = chunk->churn = 0;
    chunk->quiet = !answer.all_written;
    if (answer.left_frames && !answer.all_written)
        note_churn(scanner, chunk);
    if (answer.any_written || answer.left_frames)
        chunk->written_at = ticks_now(scanner);
    bool hot = chunk->write_hot == WRITE_HOT || (again && chunk->distrust);
    note_rewritten(chunk, answer);
    if (hot)
        take_samples(scanner, id, n);
    return hot;
}
