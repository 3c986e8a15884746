/*
 * The whole engine on real memory, in every way of freezing and of tracking:
 * what its users see through Python, here where the sanitizers can see it too.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/pages.h"
#include "check.h"
#include "engine/engine.h"
#include "ksmpy.h"
#include "os/arena.h"
#include "os/clock.h"
#include "os/map.h"
#include "pages.h"
#include "store/frames.h"
#include "store/layout.h"
#include "store/sharers.h"
#include "store/stable.h"
#include "store/store.h"

enum { PAGES = 64, PASSES = 200 };

static int way, tracking; /* of the functions that follow */

static uint8_t *new_pages(unsigned n)
{
    void *got = mmap(NULL, bytes_of(n), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return got == MAP_FAILED ? NULL : got;
}

static ksmpy_engine *new_engine(int nodes)
{
    return engine_of(way, tracking, nodes);
}

static struct ksmpy_stats stats(ksmpy_engine *engine)
{
    struct ksmpy_stats out;
    ksmpy_refresh(engine);
    ksmpy_stats(engine, &out);
    return out;
}

struct pair {
    ksmpy_engine *engine;
    uint8_t *a, *b;
    uint32_t region_a, region_b;
};

static bool open_pair(struct pair *pair, int nodes)
{
    pair->engine = new_engine(nodes);
    pair->a = new_pages(PAGES);
    pair->b = new_pages(PAGES);
    if (!pair->engine || !pair->a || !pair->b)
        return false;
    fill(pair->a, PAGES, 1);
    fill(pair->b, PAGES, 1);
    return ksmpy_register(pair->engine, (uintptr_t)pair->a, bytes_of(PAGES), 0, &pair->region_a) ==
               0 &&
           ksmpy_register(pair->engine, (uintptr_t)pair->b, bytes_of(PAGES), 0, &pair->region_b) ==
               0;
}

static void close_pair(struct pair *pair)
{
    CHECK(ksmpy_release(pair->engine, pair->region_a, 0) == 0);
    CHECK(ksmpy_release(pair->engine, pair->region_b, 0) == 0);
    CHECK(stats(pair->engine).frame_bytes == 0);
    CHECK(sound(pair->engine));
    CHECK(ksmpy_engine_close(pair->engine) == 0);
    munmap(pair->a, bytes_of(PAGES));
    munmap(pair->b, bytes_of(PAGES));
}

/* ---- one thread ---- */

static void equal_pages_merge_and_come_apart(void)
{
    struct pair pair;
    REQUIRE(open_pair(&pair, 1));
    CHECK(scan(pair.engine, KSMPY_SCAN_EAGER).merged == 2 * PAGES);
    CHECK(stats(pair.engine).pages_sharing == PAGES);
    pair.a[5 * PAGE_SIZE + 17] ^= 1;
    CHECK(stats(pair.engine).pages_sharing == PAGES - 1);
    pair.a[5 * PAGE_SIZE + 17] ^= 1;
    CHECK(filled(pair.a, PAGES, 1) && filled(pair.b, PAGES, 1));
    scan(pair.engine, 0);
    scan(pair.engine, 0);
    CHECK(scan(pair.engine, 0).full == 0 && stats(pair.engine).pages_sharing == PAGES);
    CHECK(ksmpy_unmerge(pair.engine) == 0);
    CHECK(stats(pair.engine).pages_shared == 0);
    CHECK(filled(pair.a, PAGES, 1) && filled(pair.b, PAGES, 1));
    close_pair(&pair);
}

static void zero_pages_need_no_frame(void)
{
    struct pair pair;
    REQUIRE(open_pair(&pair, 1));
    memset(pair.a, 0, bytes_of(PAGES / 2));
    CHECK(ksmpy_knob_set(pair.engine, KSMPY_KNOB_USE_ZERO_PAGES, 1) == 0);
    CHECK(scan(pair.engine, KSMPY_SCAN_EAGER).zeroed == PAGES / 2);
    CHECK(stats(pair.engine).ksm_zero_pages == PAGES / 2);
    pair.a[0] = 1;
    CHECK(stats(pair.engine).ksm_zero_pages == PAGES / 2 - 1);
    CHECK(sound(pair.engine));
    close_pair(&pair);
}

/* ---- time ---- */

static uint64_t slow_ns; /* what a slice has taken whenever it looks at the clock */
static uint64_t slice_ends[32], slices; /* pages of the region that were done by then */
static uint64_t clock_calls;
static uint64_t slice_began; /* 0: not in a slice; in one a microsecond passes from look to look */

uint64_t __real_os_now_ns(void);
uint64_t __wrap_os_now_ns(void)
{
    if (!slice_began)
        return __real_os_now_ns();
    uint64_t calls = clock_calls++;
    return slice_began + 1000 * calls + (calls ? slow_ns : 0);
}

void __real_scan_slice(struct scanner *scanner, uint64_t max_pages, bool eager);
void __wrap_scan_slice(struct scanner *scanner, uint64_t max_pages, bool eager)
{
    clock_calls = 0;
    slice_began = slow_ns ? __real_os_now_ns() : 0;
    __real_scan_slice(scanner, max_pages, eager);
    if (slice_began && slices < sizeof slice_ends / sizeof slice_ends[0])
        slice_ends[slices++] = scanner->window.at;
    slice_began = 0;
}

/* Others get the lock meanwhile, whatever a page takes. */
static void slices_end_by_time(void)
{
    enum { BEFORE = 5, N = BEFORE + 2 * HUGE_PAGES + 100, MS = 1000000 };
    struct ksmpy_options options = {.nodes = 1};
    ksmpy_engine *engine;
    uint32_t region;
    uint8_t *room = os_alloc(bytes_of(N + 2 * HUGE_PAGES)), *memory = room;
    REQUIRE(room && ksmpy_engine_new(&options, &engine) == 0);
    while ((uintptr_t)memory % bytes_of(HUGE_PAGES))
        memory += PAGE_SIZE;
    memory += bytes_of(HUGE_PAGES - BEFORE);
    fill(memory, N, 1);
    REQUIRE(ksmpy_register(engine, (uintptr_t)memory, bytes_of(N), 0, &region) == 0);
    slices = 0;
    slow_ns = 5 * MS; /* with a huge page */
    scan(engine, KSMPY_SCAN_EAGER);
    CHECK(slice_ends[0] == BEFORE && slice_ends[1] == BEFORE + HUGE_PAGES);
    CHECK(slice_ends[2] == BEFORE + 2 * HUGE_PAGES);
    slices = 0;
    fill(memory, N, 2); /* what is at rest is not visited */
    slow_ns = 100 * MS; /* at once */
    scan(engine, KSMPY_SCAN_EAGER);
    CHECK(slices == 32 && slice_ends[0] == BEFORE);
    for (int i = 1; i < 32; i++)
        CHECK(slice_ends[i] - slice_ends[i - 1] <= 15);
    slow_ns = 0;
    CHECK(sound(engine));
    CHECK(ksmpy_release(engine, region, 0) == 0 && ksmpy_engine_close(engine) == 0);
    os_unmap(room, bytes_of(N + 2 * HUGE_PAGES));
}

/* Equal pages of which none lies beside another. */
static void full_frames_are_passed_over(void)
{
    struct pair pair;
    REQUIRE(open_pair(&pair, 1));
    CHECK(ksmpy_knob_set(pair.engine, KSMPY_KNOB_MAX_PAGE_SHARING, 4) == 0);
    fill(pair.b, PAGES, 1000);
    for (unsigned page = 0; page < PAGES; page += 2) {
        memset(page_at((uintptr_t)pair.a, page), 7, PAGE_SIZE);
        memset(page_at((uintptr_t)pair.b, page), 7, PAGE_SIZE);
    }
    scan(pair.engine, KSMPY_SCAN_EAGER);
    struct ksmpy_stats now = stats(pair.engine);
    CHECK(now.pages_shared == PAGES / 4 && now.merging_pages == PAGES);
    CHECK(sound(pair.engine));
    close_pair(&pair);
}

static void full_frames_form_chains(void)
{
    struct pair pair;
    REQUIRE(open_pair(&pair, 1));
    CHECK(ksmpy_knob_set(pair.engine, KSMPY_KNOB_MAX_PAGE_SHARING, 4) == 0);
    for (unsigned page = 1; page < PAGES; page++) {
        memcpy(page_at((uintptr_t)pair.a, page), pair.a, PAGE_SIZE);
        memcpy(page_at((uintptr_t)pair.b, page), pair.a, PAGE_SIZE);
    }
    scan(pair.engine, KSMPY_SCAN_EAGER);
    struct ksmpy_stats now = stats(pair.engine);
    CHECK(now.pages_shared == 2 * PAGES / 4);
    CHECK(now.stable_node_chains == 1 && now.stable_node_dups == 2 * PAGES / 4);
    CHECK(ksmpy_knob_set(pair.engine, KSMPY_KNOB_MAX_PAGE_SHARING, 5) == -EBUSY);
    CHECK(sound(pair.engine));
    close_pair(&pair);
}

enum { FRAMES = 1000, FULL = 2 };

/* Frames in a row with the bytes of a, each with as many sharers as it may have; NO_FRAME: none. */
static uint32_t full_chain(struct pair *pair)
{
    struct store *store = &pair->engine->pages.store;
    uint64_t n = FRAMES, sum = store_sum(store, pair->a);
    store->head->knobs[KSMPY_KNOB_MAX_PAGE_SHARING] = FULL;
    uint32_t first = store_take(store, 0, &n);
    for (uint32_t frame = first; n == FRAMES && frame < first + FRAMES; frame++) {
        CHECK(store_fill(store, frame, pair->a, 1) == 1);
        frame_at(store, frame)->sum = sum;
        CHECK(store_join(store, frame, 1) == 1);
        store_publish(store, frame, 0);
        CHECK(store_join(store, frame, 1) == 1);
    }
    return n == FRAMES ? first : NO_FRAME;
}

static void leave_chain(struct pair *pair, uint32_t first)
{
    struct store *store = &pair->engine->pages.store;
    for (uint32_t frame = first; frame < first + FRAMES; frame++)
        while (frame_at(store, frame)->sharers)
            store_leave(store, frame);
    store_flush(store);
    CHECK(stats(pair->engine).stable_node_chains == 0 && stats(pair->engine).stable_node_dups == 0);
    CHECK(sound(pair->engine));
}

/* Of very many equal frames a search looks at a few, and at others the next time. */
static void long_chains_are_searched_bit_by_bit(void)
{
    struct pair pair;
    REQUIRE(open_pair(&pair, 1));
    struct store *store = &pair.engine->pages.store;
    uint64_t sum = store_sum(store, pair.a);
    uint32_t first = full_chain(&pair), found = NO_FRAME;
    REQUIRE(first != NO_FRAME);
    CHECK(stable_find(store, 0, sum, pair.a, NO_FRAME) == NO_FRAME);
    store_leave(store, first + FRAMES / 2);
    int searches = 0;
    for (; found == NO_FRAME && searches < FRAMES; searches++)
        found = stable_find(store, 0, sum, pair.a, NO_FRAME);
    CHECK(found == first + FRAMES / 2 && searches > 1 && searches < FRAMES / 16);
    CHECK(stable_find(store, 0, sum, pair.a, NO_FRAME) == found);
    store_leave(store, first + FRAMES - 1);
    CHECK(stable_find(store, 0, sum, pair.a, NO_FRAME) == first + FRAMES - 1);
    leave_chain(&pair, first);
    close_pair(&pair);
}

/* So does one for frames in a row, which has the whole of a row as soon as it sees one of it. */
static void rows_in_long_chains_are_searched_bit_by_bit(void)
{
    enum { ROW = 5, AT = FRAMES / 2 };
    struct pair pair;
    REQUIRE(open_pair(&pair, 1));
    struct store *store = &pair.engine->pages.store;
    uint64_t sum = store_sum(store, pair.a), n = 0;
    uint32_t first = full_chain(&pair), found = NO_FRAME;
    REQUIRE(first != NO_FRAME);
    for (uint32_t frame = first + AT; frame < first + AT + ROW; frame++)
        store_leave(store, frame);
    int searches = 0;
    for (; found == NO_FRAME && searches < FRAMES; searches++) {
        n = 2 * ROW;
        found = stable_find_row(store, 0, sum, pair.a, NO_FRAME, &n);
    }
    CHECK(found == first + AT && n == ROW && searches > 1 && searches < FRAMES / 16);
    n = ROW - 2;
    found = stable_find_row(store, 0, sum, pair.a, NO_FRAME, &n);
    CHECK(found >= first + AT && found + n <= first + AT + ROW && n == ROW - 2);
    leave_chain(&pair, first);
    close_pair(&pair);
}

/* The program has unmapped what the engine sees of them: nothing is merged, nobody ends. */
static void frames_that_cannot_be_read_are_not_used(void)
{
    struct pair pair;
    struct ksmpy_scan_result result;
    REQUIRE(open_pair(&pair, 1));
    struct store *store = &pair.engine->pages.store;
    munmap((void *)(uintptr_t)store->memory, bytes_of(HUGE_PAGES));
    store->readable[0] = 0;
    CHECK(ksmpy_scan(pair.engine, UINT64_MAX, KSMPY_SCAN_EAGER, &result) == -ENOMEM);
    CHECK(ksmpy_scan(pair.engine, UINT64_MAX, KSMPY_SCAN_EAGER, &result) == -ENOMEM);
    CHECK(result.merged == 0 && stats(pair.engine).merging_pages == 0);
    close_pair(&pair);
}

/* Frames in a row of which one is full, as a page elsewhere has its bytes too. */
static void a_run_passes_over_a_full_frame(void)
{
    enum { N = 8, FULL = 1, SHARING = 3 };
    struct pair pair;
    REQUIRE(open_pair(&pair, 1));
    fill(pair.b, PAGES, 1000);
    for (unsigned block = 1; block <= 3; block++)
        if (block == 2)
            memcpy(page_at((uintptr_t)pair.a, block * N + 5), page_at((uintptr_t)pair.a, FULL),
                   PAGE_SIZE);
        else
            memcpy(page_at((uintptr_t)pair.a, block * N), pair.a, bytes_of(N));
    CHECK(ksmpy_knob_set(pair.engine, KSMPY_KNOB_MAX_PAGE_SHARING, SHARING) == 0);
    scan(pair.engine, KSMPY_SCAN_EAGER);
    CHECK(stats(pair.engine).pages_shared == N && stats(pair.engine).merging_pages == N * SHARING);
    for (uint32_t frame = 0; frame < N; frame++)
        CHECK(frame_at(&pair.engine->pages.store, frame)->sharers == SHARING);
    CHECK(sound(pair.engine));
    close_pair(&pair);
}

static void pages_stay_on_their_node(void)
{
    struct pair pair;
    uint8_t nodes[PAGES];
    REQUIRE(open_pair(&pair, 2));
    for (int page = 0; page < PAGES; page++)
        nodes[page] = page % 2;
    CHECK(ksmpy_knob_set(pair.engine, KSMPY_KNOB_MERGE_ACROSS_NODES, 0) == 0);
    CHECK(ksmpy_set_nodes(pair.engine, pair.region_a, nodes, PAGES) == 0); /* those of b stay 0 */
    scan(pair.engine, KSMPY_SCAN_EAGER);
    CHECK(stats(pair.engine).pages_sharing == PAGES / 2);
    CHECK(ksmpy_knob_set(pair.engine, KSMPY_KNOB_MERGE_ACROSS_NODES, 1) == -EBUSY);
    CHECK(ksmpy_unmerge(pair.engine) == 0);
    CHECK(ksmpy_knob_set(pair.engine, KSMPY_KNOB_MERGE_ACROSS_NODES, 1) == 0);
    scan(pair.engine, KSMPY_SCAN_EAGER);
    CHECK(stats(pair.engine).pages_sharing == PAGES);
    CHECK(sound(pair.engine));
    close_pair(&pair);
}

static void dying_owners_need_no_copy(void)
{
    struct pair pair;
    REQUIRE(open_pair(&pair, 1));
    scan(pair.engine, KSMPY_SCAN_EAGER);
    CHECK(ksmpy_release(pair.engine, pair.region_a, 1) == 0);
    munmap(pair.a, bytes_of(PAGES));
    CHECK(filled(pair.b, PAGES, 1));
    pair.a = new_pages(PAGES);
    fill(pair.a, PAGES, 1);
    CHECK(ksmpy_register(pair.engine, (uintptr_t)pair.a, bytes_of(PAGES), 0, &pair.region_a) == 0);
    scan(pair.engine, KSMPY_SCAN_EAGER);
    CHECK(stats(pair.engine).pages_sharing == PAGES);
    close_pair(&pair);
}

static void bad_calls_are_refused(void)
{
    struct pair pair;
    uint32_t region;
    REQUIRE(open_pair(&pair, 1));
    uintptr_t a = (uintptr_t)pair.a;
    CHECK(ksmpy_register(pair.engine, a + PAGE_SIZE, PAGE_SIZE, 0, &region) == -EEXIST);
    CHECK(ksmpy_register(pair.engine, a + 1, PAGE_SIZE, 0, &region) == -EINVAL);
    CHECK(ksmpy_register(pair.engine, a, 0, 0, &region) == -EINVAL);
    CHECK(ksmpy_release(pair.engine, 12345, 0) == -ENOENT);
    CHECK(ksmpy_engine_close(pair.engine) == -EBUSY);
    CHECK(ksmpy_knob_set(pair.engine, KSMPY_KNOB_MAX_PAGE_SHARING, 1) == -EINVAL);
    CHECK(ksmpy_knob_set(pair.engine, KSMPY_KNOB_COUNT, 1) == -EINVAL);
    close_pair(&pair);
}

/* ---- other threads and processes ---- */

struct writer {
    pthread_t thread;
    struct pair *pair;
    unsigned number;
    uint64_t rounds;
};

static _Atomic bool stop;

/* A counter in every eighth page, one word for each writer; the other pages merge. */
static uint64_t *counter(uint8_t *memory, unsigned page, unsigned number)
{
    return (uint64_t *)(void *)page_at((uintptr_t)memory, page) + 8 * number;
}

static void *count_up(void *argument)
{
    struct writer *writer = argument;
    while (!atomic_load(&stop)) {
        for (unsigned page = 0; page < PAGES; page += 8) {
            ++*counter(writer->pair->a, page, writer->number);
            ++*counter(writer->pair->b, page, writer->number);
        }
        writer->rounds++;
        if (writer->rounds % 64 == 0)
            os_sleep_us(200); /* long enough for the pages to be merged again */
    }
    return NULL;
}

static void no_write_is_lost(void)
{
    struct pair pair;
    struct writer writers[2];
    uint64_t merged = 0;
    REQUIRE(open_pair(&pair, 1));
    for (unsigned page = 0; page < PAGES; page += 8)
        for (unsigned number = 0; number < 2; number++)
            *counter(pair.a, page, number) = *counter(pair.b, page, number) = 0;
    atomic_store(&stop, false);
    for (unsigned i = 0; i < 2; i++) {
        writers[i] = (struct writer){.pair = &pair, .number = i};
        REQUIRE(pthread_create(&writers[i].thread, NULL, count_up, &writers[i]) == 0);
    }
    for (int pass = 0; pass < PASSES; pass++) {
        merged += scan(pair.engine, KSMPY_SCAN_EAGER).merged;
        if (pass % 16 == 15)
            CHECK(ksmpy_unmerge(pair.engine) == 0);
        CHECK(sound(pair.engine));
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(writers[i].thread, NULL);
    CHECK(merged > PAGES);
    for (unsigned page = 0; page < PAGES; page += 8)
        for (unsigned i = 0; i < 2; i++) {
            CHECK(*counter(pair.a, page, i) == writers[i].rounds);
            CHECK(*counter(pair.b, page, i) == writers[i].rounds);
        }
    close_pair(&pair);
}

static int child(const struct pair *pair, int go)
{
    char byte;
    if (read(go, &byte, 1) != 1) /* the parent gave its pages back meanwhile */
        return 2;
    if (!filled(pair->a, PAGES, 1) || !filled(pair->b, PAGES, 1))
        return 3;
    pair->a[0] ^= 0xff;
    return 0;
}

static void children_keep_their_bytes(void)
{
    struct pair pair;
    int pipe_fds[2], status;
    REQUIRE(open_pair(&pair, 1));
    scan(pair.engine, KSMPY_SCAN_EAGER);
    REQUIRE(pipe(pipe_fds) == 0);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0)
        _exit(child(&pair, pipe_fds[0]));
    CHECK(ksmpy_unmerge(pair.engine) == 0);
    fill(pair.a, PAGES, 1000);
    fill(pair.b, PAGES, 1000);
    scan(pair.engine, KSMPY_SCAN_EAGER);
    CHECK(stats(pair.engine).stale_frames == PAGES);
    CHECK(write(pipe_fds[1], "g", 1) == 1);
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    scan(pair.engine, 0);
    CHECK(stats(pair.engine).stale_frames == 0);
    CHECK(filled(pair.a, PAGES, 1000) && filled(pair.b, PAGES, 1000));
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    close_pair(&pair);
}

/* ---- fork ---- */

static ksmpy_engine *forking; /* the engine that is looked at in the middle of a fork */
static bool at_rest;

/* Registered before the engine's own handler, and so called after it. */
static void look_before_fork(void)
{
    at_rest = forking && pthread_mutex_trylock(&forking->lock) == EBUSY &&
              pthread_mutex_trylock(&forking->merger.fz.lock) == EBUSY;
}

static bool can_lock(pthread_mutex_t *mutex)
{
    return pthread_mutex_trylock(mutex) == 0 && pthread_mutex_unlock(mutex) == 0;
}

static void nothing_is_half_done_at_a_fork(void)
{
    struct pair pair;
    int status;
    REQUIRE(open_pair(&pair, 1));
    scan(pair.engine, KSMPY_SCAN_EAGER);
    forking = pair.engine;
    pid_t pid = fork();
    forking = NULL;
    REQUIRE(pid >= 0);
    if (pid == 0)
        _exit(can_lock(&pair.engine->lock) && can_lock(&pair.engine->merger.fz.lock) ? 0 : 1);
    CHECK(at_rest);
    CHECK(can_lock(&pair.engine->lock) && can_lock(&pair.engine->merger.fz.lock));
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    scan(pair.engine, 0); /* notices that the child is gone */
    close_pair(&pair);
}

static void runs_of_ids_are_found_again(void)
{
    struct ids_state state = {0};
    struct ids ids;
    REQUIRE(ids_init(&ids, 100000, &state) == 0);
    uint64_t n = 1000;
    uint32_t first = ids_take(&ids, &n);
    CHECK(first == 0 && n == 1000);
    ids_give(&ids, 100, 50);
    ids_give(&ids, 300, 200);
    n = 150;
    CHECK(ids_take(&ids, &n) == 300 && n == 150); /* the first hole is too short */
    n = 50;
    CHECK(ids_take(&ids, &n) == 450 && n == 50);
    n = 99001;
    uint32_t rest = ids_take(&ids, &n);
    CHECK(rest == 1000 && n == 99000); /* all that is left above */
    n = 60;
    CHECK(ids_take(&ids, &n) == 100 && n == 50); /* the only piece there is */
    n = 1;
    CHECK(ids_take(&ids, &n) == NO_INDEX);
    CHECK(state.used == 100000);
    ids_destroy(&ids);
}

static void run_all(void)
{
    RUN(equal_pages_merge_and_come_apart);
    RUN(zero_pages_need_no_frame);
    RUN(slices_end_by_time);
    RUN(full_frames_are_passed_over);
    RUN(full_frames_form_chains);
    RUN(frames_that_cannot_be_read_are_not_used);
    RUN(long_chains_are_searched_bit_by_bit);
    RUN(rows_in_long_chains_are_searched_bit_by_bit);
    RUN(a_run_passes_over_a_full_frame);
    RUN(pages_stay_on_their_node);
    RUN(dying_owners_need_no_copy);
    RUN(bad_calls_are_refused);
    RUN(no_write_is_lost);
    RUN(children_keep_their_bytes);
    RUN(nothing_is_half_done_at_a_fork);
}

int main(void)
{
    pthread_atfork(look_before_fork, NULL, NULL);
    RUN(runs_of_ids_are_found_again);
    for (way = KSMPY_FREEZE_UFFD_MOVE; way <= KSMPY_FREEZE_UFFD_WP; way++)
        for (tracking = KSMPY_TRACKING_WP_ASYNC; tracking <= KSMPY_TRACKING_CHECKSUM; tracking++) {
            if (works_here(way, tracking))
                run_all();
        }
    return finish();
}
