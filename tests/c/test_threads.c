/*
 * One engine that several threads use at once, each in its own way.  The thread sanitizer sees what
 * of it no lock protects.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "base/pages.h"
#include "check.h"
#include "ksmpy.h"
#include "os/clock.h"
#include "os/map.h"
#include "pages.h"

enum { PAGES = 256, ROUNDS = 40 };

static ksmpy_engine *engine;
static int way;
static _Atomic bool stop;
static _Atomic unsigned wrong;

static void expect(bool right)
{
    if (!right)
        atomic_fetch_add(&wrong, 1);
}

static void *scan_on(void *nothing)
{
    while (!atomic_load(&stop))
        scan(engine, KSMPY_SCAN_EAGER);
    return nothing;
}

static void *ask(void *nothing)
{
    struct ksmpy_stats stats;
    struct ksmpy_region_stats region;
    uint64_t value;
    while (!atomic_load(&stop)) {
        expect(ksmpy_stats(engine, &stats) == 0);
        expect(ksmpy_knob_get(engine, KSMPY_KNOB_MAX_PAGE_SHARING, &value) == 0);
        expect(ksmpy_exact_stats(engine, &stats) == 0);
        ksmpy_region_stats(engine, 0, &region, &stats);
        ksmpy_store_full(engine);
        os_sleep_us(500);
    }
    return nothing;
}

/* Memory of its own that comes, is merged, given back where that gives zeros, and goes. */
static void *come_and_go(void *seed)
{
    bool gives_zeros = way != KSMPY_FREEZE_SIGNAL;
    for (int round = 0; round < ROUNDS; round++) {
        uint32_t region;
        uint8_t *memory = os_alloc(bytes_of(PAGES));
        fill(memory, PAGES, *(uint32_t *)seed);
        expect(ksmpy_register(engine, (uintptr_t)memory, bytes_of(PAGES), 0, &region) == 0);
        os_sleep_us(2000);
        expect(filled(memory, PAGES, *(uint32_t *)seed));
        if (round % 4 == 0)
            expect(ksmpy_unmerge_region(engine, region) == 0);
        if (gives_zeros && round % 4 == 1)
            madvise(memory, bytes_of(PAGES / 2), MADV_DONTNEED);
        expect(ksmpy_release(engine, region, round % 4 == 3) == 0);
        os_unmap(memory, bytes_of(PAGES));
    }
    return NULL;
}

static void threads_use_one_engine(void)
{
    pthread_t scanner, asker, owners[3];
    uint32_t seeds[] = {1, 1, 1 + PAGES / 2};
    REQUIRE((engine = engine_of(way, KSMPY_TRACKING_AUTO, 1)) != NULL);
    atomic_store(&stop, false);
    REQUIRE(pthread_create(&scanner, NULL, scan_on, NULL) == 0);
    REQUIRE(pthread_create(&asker, NULL, ask, NULL) == 0);
    for (int i = 0; i < 3; i++)
        REQUIRE(pthread_create(&owners[i], NULL, come_and_go, &seeds[i]) == 0);
    for (int i = 0; i < 3; i++)
        pthread_join(owners[i], NULL);
    atomic_store(&stop, true);
    pthread_join(scanner, NULL);
    pthread_join(asker, NULL);
    CHECK(atomic_load(&wrong) == 0);
    CHECK(sound(engine) && ksmpy_engine_close(engine) == 0);
}

int main(void)
{
    const int ways[] = {KSMPY_FREEZE_UFFD_WP, KSMPY_FREEZE_UFFD_MOVE, KSMPY_FREEZE_UFFD_REMAP,
                        KSMPY_FREEZE_SIGNAL};
    for (unsigned i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        way = ways[i];
        if (works_here(way, KSMPY_TRACKING_AUTO))
            RUN(threads_use_one_engine);
    }
    return finish();
}
