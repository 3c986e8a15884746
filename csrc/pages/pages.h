/*
 * What is held of each page, and of the regions that they are in.
 *
 * A region is a registered buffer's whole pages.  Every page has a twelve-byte
 * record; its state says what the engine believes of it, and only ever lags
 * behind the truth, which is in the page tables:
 *
 *   NEW --seen--> SEEN --unchanged for a pass--> looked up by its checksum
 *     in the stable tree      -> SHARED (mapped onto that frame)
 *     among the candidates    -> both SHARED, on a frame made from the other page
 *     equal to its neighbours -> with them on frames in a row (merge/equal_neighbours.c)
 *     all zero, use_zero_pages -> ZERO (the kernel's zero page)
 *     nowhere                 -> WAITING: alone in its bucket of the candidates' table
 *   WAITING, and a page of equal checksum comes -> PAIRED: in the unstable tree
 *   a page found written goes back to SEEN; a written SHARED page gets
 *   anonymous memory again first.
 */
#ifndef KSMPY_PAGES_PAGES_H
#define KSMPY_PAGES_PAGES_H

#include "base/pages.h"
#include "base/rbtree.h"
#include "ksmpy.h"
#include "os/arena.h"
#include "os/clock.h"
#include "os/proc_maps.h"
#include "store/layout.h"
#include "store/store.h"

#define NO_PAGE NO_INDEX
#define NO_REGION NO_INDEX
#define CHUNK_SHIFT 9 /* page ids are given to regions in chunks of 512 */
#define CHUNK ((uint64_t)1 << CHUNK_SHIFT)
#define SAMPLES 4 /* pages of a chunk that are read to see whether it is written all over */

enum page_state {
    PAGE_NEW,     /* nothing is known */
    PAGE_SEEN,    /* visited; its checksum is known if it was unchanged or there is no tracking;
                     link: the frame that it is about to share (merge/plan.h), or NO_INDEX */
    PAGE_REFUSED, /* the same, and could be merged if there were more mappings */
    PAGE_WAITING, /* candidate, link: next in its bucket */
    PAGE_PAIRED,  /* candidate, link: its node of the unstable tree */
    PAGE_SHARED,  /* link: its frame */
    PAGE_ZERO,    /* the engine put it on the kernel's zero page */
    PAGE_HOLE,    /* on the zero page by itself: never written by its owner */
    PAGE_STATES,
};

struct page {
    uint32_t sum_low;
    uint16_t sum_high;
    uint16_t bits; /* state: 3, age: 4, visits to skip: 4, node: 5 */
    uint32_t link;
};

static inline uint64_t page_sum(const struct page *page)
{
    return (uint64_t)page->sum_high << 32 | page->sum_low;
}
static inline void page_set_sum(struct page *page, uint64_t sum)
{
    page->sum_low = (uint32_t)sum;
    page->sum_high = (uint16_t)(sum >> 32);
}
static inline unsigned page_field(const struct page *page, int shift, unsigned mask)
{
    return page->bits >> shift & mask;
}
static inline void page_set_field(struct page *page, int shift, unsigned mask, unsigned value)
{
    page->bits = (uint16_t)((page->bits & ~(mask << shift)) | value << shift);
}
#define PAGE_FIELD(name, shift, mask)                                                              \
    static inline unsigned page_##name(const struct page *page)                                    \
    {                                                                                              \
        return page_field(page, shift, mask);                                                      \
    }                                                                                              \
    static inline void page_set_##name(struct page *page, unsigned value)                          \
    {                                                                                              \
        page_set_field(page, shift, mask, value);                                                  \
    }
PAGE_FIELD(state, 0, 7)
PAGE_FIELD(age, 3, 15)
PAGE_FIELD(skip, 7, 15)
PAGE_FIELD(node, 11, 31)

struct region {
    struct rb_node by_address;
    bool used;
    bool lost;      /* its memory is no longer (all) the owner's: left alone */
    bool growing;   /* KSMPY_VMA_GROWING: see stays_apart() */
    bool unsure;    /* a pass was told what was written, and then ended before it got there */
    int vma_flags;  /* enum ksmpy_vma_flag; with UNKNOWN among them it is passed over */
    uintptr_t address;
    uintptr_t shadow; /* see freezer_shadow(), or 0 */
    uint64_t n;
    uint64_t serial; /* of its registration: no other region ever has it */
    uint32_t leaving; /* calls that give its pages back just now: nothing of it is merged */
    uint32_t base;  /* id of its first page */
    uint32_t next, previous; /* in order of registration; of a free record: the next one */
    uint64_t pages_in[PAGE_STATES];
    uint64_t copies; /* of the shared ones, written but not its owner's own yet: at the last look */
    uint64_t counted; /* of them, so far, by the look that is under way */
};

/* Nothing of it is merged: it is not its owner's any more, is going, or nobody knows what it is. */
static inline bool region_is_left_alone(const struct region *region)
{
    return region->lost || region->leaving || region->vma_flags & KSMPY_VMA_UNKNOWN;
}

struct chunk { /* of page ids */
    uint32_t region;
    bool untracked; /* some of its overlays are */
    bool visited;
    bool sampled; /* when it was last found written, in the pass whose number ends in sampled_in */
    uint8_t write_hot : 2; /* visits in a row that found all of its pages written */
    uint8_t distrust : 3; /* how long it has to rest before it is asked about: scan/chunk_plan.c */
    uint8_t quiet : 1; /* the last answer was that not all of its pages were written */
    uint8_t partly_hot : 2; /* answers in a row that told of pages which were written again */
    bool joined; /* pages of it went onto frames since some were last found written there */
    uint8_t churn; /* how long it is put off since that happens again and again */
    uint16_t churned_at; /* when it last did, in odd ticks of scan/chunk_plan.c; 0: never */
    uint16_t unsettled; /* pages that a pass has to visit though they were not written */
    uint16_t written_at; /* when it was last found written, in ticks of scan/chunk_plan.c */
    uint16_t rewritten; /* if it is partly written all the time: so many pages at the last answer */
    uint16_t sampled_in;
    uint32_t samples[SAMPLES]; /* checksums */
};

struct unode { /* node of an unstable tree */
    struct rb_node rb;
    uint32_t page; /* or the next free node */
};

/* The unstable trees, and the pages that wait for one with equal bytes: see pages/candidates.h. */
struct candidates {
    struct rb_tree trees[MAX_NODES];
    struct arena nodes; /* struct unode */
    uint32_t node_count, free_node;
    uint32_t *heads; /* buckets of the pages that wait */
    uint64_t buckets;
    uint64_t cleared; /* heads before this one have been made empty, or are in use */
    uint32_t
        *old_heads; /* of a smaller table, of which those from `moved` on are in use; or NULL */
    uint64_t old_buckets, moved;
};

/* Frames whose overlays went out of sight: see pages/pins.h. */
struct pins {
    struct arena list; /* struct pin, of which some may be the same frame's twice */
    struct arena seen; /* uint64_t: a bit for each frame */
    uint64_t count;
    bool unlisted; /* there was no room for some in that list, which stay for ever */
};

/* The pages of all regions, and the store whose frames they share. */
struct pages {
    struct store store;
    struct os_maps maps;
    bool forked; /* this is the child's copy of the parent's engine */
    bool astray; /* and some overlay of it went out of sight, and may be mapped anywhere */
    bool tracked; /* the kernel tells which pages were written */
    bool injected_nodes; /* ksmpy_set_nodes() tells where pages are */
    int nodes;
    int node_ids[MAX_NODES];
    uint64_t knobs[KSMPY_KNOB_COUNT];
    uint64_t rules_followed; /* changes of the store's rules that this engine knows of */
    uint64_t events_read; /* of the store's */
    bool missed_events; /* so all pages that wait are looked up */
    uintptr_t looked_to; /* those below it were */
    uint64_t sum_of_zeros;
    uint64_t full_scans;

    struct arena regions; /* struct region */
    uint32_t region_count; /* records in use or free */
    uint64_t copies; /* of all regions */
    uint32_t first_region, last_region, free_region;
    uint32_t arriving; /* being registered, which nobody else sees yet; or NO_REGION */
    struct rb_tree by_address; /* all that are registered */
    struct ids chunks;
    struct ids_state chunk_state;
    struct arena chunk_records; /* struct chunk */
    struct arena records; /* struct page */
    uint64_t registered;
    uint64_t registrations; /* there ever were */
    uint64_t pages_in[PAGE_STATES]; /* of all regions */
    uint64_t lost; /* pages of regions whose memory was taken away */
    struct candidates candidates;
    struct pins pins;
};

#define SLICE_NS 500000 /* after which who works for longer lets others have the lock */
#define SLICE_OF_TEXT_NS                                                                           \
    (40 * SLICE_NS) /* the same where each slice reads the mappings from the first one on */

/* When a slice that begins now is over. */
static inline uint64_t slice_end(const struct pages *pages)
{
    return os_now_ns() + (pages->maps.query ? SLICE_NS : SLICE_OF_TEXT_NS);
}

/* These are asked so often that the stride has to be known where they are compiled. */
static inline struct page *page_record(const struct pages *pages, uint32_t id)
{
    return (struct page *)pages->records.base + id;
}
static inline bool is_shared(const struct pages *pages, uint32_t id)
{
    return page_state(page_record(pages, id)) == PAGE_SHARED;
}
/* Is there something to do for a page of that state, written or not? */
static inline bool is_unsettled(enum page_state state)
{
    return state < PAGE_WAITING;
}
/* Is it about to go onto a frame, which is its link? */
static inline bool page_is_planned(const struct page *page)
{
    return page_state(page) == PAGE_SEEN && page->link != NO_INDEX;
}
/* Is it on a frame, or about to be? */
static inline bool is_taken(const struct pages *pages, uint32_t id)
{
    return is_shared(pages, id) || page_is_planned(page_record(pages, id));
}
/* Is it a candidate? */
static inline bool page_waits(const struct page *page)
{
    return page_state(page) == PAGE_WAITING || page_state(page) == PAGE_PAIRED;
}
static inline struct region *region_at(const struct pages *pages, uint32_t region)
{
    return (struct region *)pages->regions.base + region;
}
static inline struct chunk *chunk_of(const struct pages *pages, uint32_t id)
{
    return (struct chunk *)pages->chunk_records.base + (id >> CHUNK_SHIFT);
}
static inline uint32_t region_of(const struct pages *pages, uint32_t id)
{
    return chunk_of(pages, id)->region;
}
static inline uintptr_t page_address(const struct pages *pages, uint32_t id)
{
    const struct region *region = region_at(pages, region_of(pages, id));
    return region->address + bytes_of(id - region->base);
}
/* Which tree a page of that node belongs in. */
static inline int tree_of(const struct pages *pages, unsigned node)
{
    return pages->knobs[KSMPY_KNOB_MERGE_ACROSS_NODES] ? 0 : (int)node;
}
/* The page after that one, region by region in order of registration; NO_PAGE: it is the last. */
static inline uint32_t page_after(const struct pages *pages, uint32_t id)
{
    const struct region *region = region_at(pages, region_of(pages, id));
    if (id + 1 - region->base < region->n)
        return id + 1;
    return region->next == NO_REGION ? NO_PAGE : region_at(pages, region->next)->base;
}
static inline uint32_t first_page(const struct pages *pages)
{
    uint32_t region = pages->first_region;
    return region == NO_REGION ? NO_PAGE : region_at(pages, region)->base;
}
#define EACH_REGION(pages, id)                                                                     \
    for (uint32_t id = (pages)->first_region; id != NO_REGION; id = region_at(pages, id)->next)
#define EACH_PAGE(pages, id)                                                                       \
    for (uint32_t id = first_page(pages); id != NO_PAGE; id = page_after(pages, id))

#endif
