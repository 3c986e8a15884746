/* Pages with a known content, and what the tests of whole engines do with an engine. */
#ifndef KSMPY_TESTS_PAGES_H
#define KSMPY_TESTS_PAGES_H

#include <stdio.h>

#include "base/pages.h"
#include "ksmpy.h"

/* Every page unlike the others, and beginning with its number. */
static inline void fill(uint8_t *memory, unsigned n, uint32_t seed)
{
    for (uint32_t page = 0; page < n; page++)
        for (uint32_t word = 0; word < PAGE_SIZE / 4; word++)
            ((uint32_t *)(void *)page_at((uintptr_t)memory, page))[word] =
                (page + seed) * 2654435761u + word;
}

static inline bool filled(const uint8_t *memory, unsigned n, uint32_t seed)
{
    for (uint32_t page = 0; page < n; page++)
        for (uint32_t word = 0; word < PAGE_SIZE / 4; word++)
            if (((const uint32_t *)(const void *)page_at((uintptr_t)memory, page))[word] !=
                (page + seed) * 2654435761u + word)
                return false;
    return true;
}

/* NULL: there is none of this kind here. */
static inline ksmpy_engine *engine_of(int freeze, int tracking, int nodes)
{
    struct ksmpy_options options = {.freeze = freeze, .tracking = tracking, .nodes = nodes};
    ksmpy_engine *engine = NULL;
    return ksmpy_engine_new(&options, &engine) == 0 ? engine : NULL;
}

/* Can the functions that follow be run like this? Says so. */
static inline bool works_here(int freeze, int tracking)
{
    ksmpy_engine *engine = engine_of(freeze, tracking, 1);
    printf("freeze %d, tracking %d%s\n", freeze, tracking, engine ? "" : ": not here");
    if (engine)
        ksmpy_engine_close(engine);
    return engine != NULL;
}

/* The program's functions, in each of n ways to freeze and to track; its exit code. */
static inline int finish_in(const int ways[][2], unsigned n, int *way, int *tracking,
                            void (*run_all)(void))
{
    for (unsigned i = 0; i < n; i++) {
        *way = ways[i][0];
        *tracking = ways[i][1];
        if (works_here(*way, *tracking))
            run_all();
    }
    return finish();
}

/* One whole pass. */
static inline struct ksmpy_scan_result scan(ksmpy_engine *engine, int flags)
{
    struct ksmpy_scan_result result, total = {0};
    flags |= KSMPY_SCAN_RESTART;
    do {
        ksmpy_scan(engine, 100000, flags, &result);
        flags &= ~KSMPY_SCAN_RESTART;
        total.merged += result.merged;
        total.zeroed += result.zeroed;
        total.unmerged += result.unmerged;
    } while (!result.full);
    return total;
}

static inline bool sound(ksmpy_engine *engine)
{
    char text[200] = "";
    if (ksmpy_check(engine, text, sizeof text) == 0)
        return true;
    printf("%s\n", text);
    return false;
}

#endif
