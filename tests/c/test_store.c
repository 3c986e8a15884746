/*
 * Engines on one shared store: as neighbours in one process, where the
 * sanitizers see both, and as processes of which one is killed.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/checksum.h"
#include "base/pages.h"
#include "check.h"
#include "engine/engine.h"
#include "ksmpy.h"
#include "os/clock.h"
#include "os/files.h"
#include "os/map.h"
#include "os/memory.h"
#include "pages.h"
#include "store/layout.h"
#include "store/slots.h"

enum { PAGES = 200, ROUNDS = 60, DEATHS = 40 };

static bool memory_is_scarce;
uint64_t __real_os_memory_left(struct os_memory *memory, char *which, size_t size);
uint64_t __wrap_os_memory_left(struct os_memory *memory, char *which, size_t size)
{
    uint64_t left = __real_os_memory_left(memory, which, size);
    return memory_is_scarce ? least(left, 50000) : left; /* pages: enough for all that tests take */
}

struct neighbour {
    ksmpy_engine *engine;
    uint8_t *memory;
    uint32_t region;
    pthread_t thread;
    bool right;
};

static bool arrive(struct neighbour *neighbour, int store)
{
    struct ksmpy_options options = {.nodes = 1, .store_fd = store};
    neighbour->memory = os_alloc(bytes_of(PAGES));
    if (!neighbour->memory || ksmpy_engine_new(&options, &neighbour->engine) < 0)
        return false;
    fill(neighbour->memory, PAGES, 1);
    return ksmpy_register(neighbour->engine, (uintptr_t)neighbour->memory, bytes_of(PAGES), 0,
                          &neighbour->region) == 0;
}

static void leave(struct neighbour *neighbour)
{
    CHECK(ksmpy_release(neighbour->engine, neighbour->region, 0) == 0);
    CHECK(ksmpy_engine_close(neighbour->engine) == 0);
    os_unmap(neighbour->memory, bytes_of(PAGES));
}

static struct ksmpy_store_stats stats(int store)
{
    struct ksmpy_store_stats out = {0};
    CHECK(ksmpy_store_stats(store, &out) == 0);
    return out;
}

static void neighbours_come_to_share(void)
{
    struct neighbour one, two;
    int store = os_memfd("ksmpy-store", 0);
    REQUIRE(store >= 0 && arrive(&one, store) && arrive(&two, store));
    scan(one.engine, KSMPY_SCAN_EAGER);
    scan(two.engine, KSMPY_SCAN_EAGER);
    CHECK(stats(store).pages_shared == PAGES && stats(store).pages_sharing == 0);
    scan(one.engine, KSMPY_SCAN_EAGER);
    CHECK(stats(store).pages_shared == PAGES && stats(store).pages_sharing == PAGES);
    CHECK(sound(one.engine) && sound(two.engine));
    two.memory[0] ^= 1;
    CHECK(filled(one.memory, PAGES, 1));
    two.memory[0] ^= 1;
    CHECK(filled(two.memory, PAGES, 1));
    leave(&one);
    CHECK(stats(store).pages_shared == PAGES);
    leave(&two);
    CHECK(stats(store).frame_bytes == 0);
    CHECK(ksmpy_store_retire(store) == 0);
    CHECK(!arrive(&one, store));
    close(store);
}

/* Merged, written, taken apart and looked at, over and over. */
static void *live(void *argument)
{
    struct neighbour *me = argument;
    me->right = true;
    for (uint32_t round = 0; round < ROUNDS && me->right; round++) {
        fill(me->memory, PAGES, 1 + round % 3 * 7);
        scan(me->engine, KSMPY_SCAN_EAGER);
        scan(me->engine, KSMPY_SCAN_EAGER);
        me->right = filled(me->memory, PAGES, 1 + round % 3 * 7);
        if (round % 4 == 3)
            me->right = me->right && ksmpy_unmerge(me->engine) == 0;
    }
    return NULL;
}

static void neighbours_do_not_disturb_each_other(void)
{
    struct neighbour some[3];
    int store = os_memfd("ksmpy-store", 0);
    REQUIRE(store >= 0);
    for (int i = 0; i < 3; i++)
        REQUIRE(arrive(&some[i], store));
    for (int i = 0; i < 3; i++)
        REQUIRE(pthread_create(&some[i].thread, NULL, live, &some[i]) == 0);
    for (int i = 0; i < 3; i++) {
        pthread_join(some[i].thread, NULL);
        CHECK(some[i].right);
    }
    CHECK(sound(some[0].engine));
    for (int i = 0; i < 3; i++)
        leave(&some[i]);
    CHECK(stats(store).frame_bytes == 0);
    close(store);
}

static void live_until_killed(int store)
{
    struct neighbour me;
    if (!arrive(&me, store))
        _exit(1);
    for (;;)
        live(&me);
}

/* Whoever dies at any moment is taken out of the store, and the other one goes on. */
static void the_dead_are_reaped(void)
{
    struct neighbour one;
    int store = os_memfd("ksmpy-store", 0);
    REQUIRE(store >= 0 && arrive(&one, store));
    for (int i = 0; i < DEATHS; i++) {
        pid_t pid = fork();
        REQUIRE(pid >= 0);
        if (pid == 0)
            live_until_killed(store);
        os_sleep_us(2000 + (unsigned)(i * 1237 % 20000));
        scan(one.engine, KSMPY_SCAN_EAGER);
        kill(pid, SIGKILL);
        CHECK(waitpid(pid, NULL, 0) == pid);
        scan(one.engine, KSMPY_SCAN_EAGER);
        CHECK(filled(one.memory, PAGES, 1));
        CHECK(sound(one.engine));
    }
    leave(&one);
    CHECK(stats(store).frame_bytes == 0);
    close(store);
}

static void a_child_goes_on_with_its_engine(void)
{
    struct neighbour one;
    int status, store = os_memfd("ksmpy-store", 0);
    REQUIRE(store >= 0 && arrive(&one, store));
    scan(one.engine, KSMPY_SCAN_EAGER);
    struct neighbour two;
    REQUIRE(arrive(&two, store));
    scan(two.engine, KSMPY_SCAN_EAGER);
    scan(one.engine, KSMPY_SCAN_EAGER);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        bool right = filled(one.memory, PAGES, 1) && ksmpy_revive(one.engine) == 0;
        one.memory[5] ^= 1;
        scan(one.engine, KSMPY_SCAN_EAGER);
        one.memory[5] ^= 1;
        right = right && filled(one.memory, PAGES, 1) && sound(one.engine);
        _exit(right && ksmpy_unmerge(one.engine) == 0 && filled(one.memory, PAGES, 1) ? 0 : 1);
    }
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    leave(&one);
    leave(&two);
    CHECK(stats(store).frame_bytes == 0);
    close(store);
}

/* A child had no memory to note a frame whose overlay went out of sight: its lease keeps that. */
static void a_child_keeps_what_it_could_not_note(void)
{
    struct neighbour one, two;
    int status, store = os_memfd("ksmpy-store", 0);
    REQUIRE(store >= 0 && arrive(&one, store) && arrive(&two, store));
    for (int i = 0; i < 2; i++) {
        scan(one.engine, KSMPY_SCAN_EAGER);
        scan(two.engine, KSMPY_SCAN_EAGER);
    }
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        struct store *mine = &one.engine->pages.store;
        unsigned inherited = mine->slot;
        one.engine->pages.pins.unlisted = true;
        bool right = mine->lease && ksmpy_revive(one.engine) == 0;
        _exit(right && slot_is_held(mine, inherited) && inherited != mine->slot ? 0 : 1);
    }
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    leave(&one);
    leave(&two);
    CHECK(stats(store).frame_bytes == 0);
    close(store);
}

/* In a child that goes on with its parent's engine nothing of the store is mapped but overlays. */
static bool asks_and_gives_back(struct neighbour *me)
{
    struct ksmpy_stats stats;
    struct ksmpy_region_stats region;
    struct ksmpy_share share;
    uint8_t nodes[PAGES] = {0};
    uint64_t value;
    bool right = ksmpy_stats(me->engine, &stats) == -EPERM &&
                 ksmpy_exact_stats(me->engine, &stats) == -EPERM &&
                 ksmpy_region_stats(me->engine, me->region, &region, &stats) == -EPERM &&
                 ksmpy_shares(me->engine, &share, 1) == -EPERM &&
                 ksmpy_check(me->engine, NULL, 0) == -EPERM &&
                 ksmpy_refresh(me->engine) == -EPERM && ksmpy_unmerge(me->engine) == -EPERM &&
                 ksmpy_unmerge_region(me->engine, me->region) == -EPERM &&
                 ksmpy_find_lost(me->engine, &me->region, 1) == -EPERM &&
                 ksmpy_knob_set(me->engine, KSMPY_KNOB_USE_ZERO_PAGES, 0) == -EPERM;
    right = right && ksmpy_store_full(me->engine) == 0 &&
            ksmpy_knob_get(me->engine, KSMPY_KNOB_MAX_PAGE_SHARING, &value) == 0 &&
            ksmpy_set_vma_flags(me->engine, me->region, (uintptr_t)me->memory, 0) == 0 &&
            ksmpy_set_nodes(me->engine, me->region, nodes, PAGES) == 0;
    right = right && ksmpy_release(me->engine, me->region, 0) == 0 && filled(me->memory, PAGES, 1);
    return right && ksmpy_engine_close(me->engine) == 0;
}

static void a_child_gives_back_what_it_inherited(void)
{
    int stores[] = {0, os_memfd("ksmpy-store", 0)};
    for (int i = 0; i < 2; i++) {
        struct neighbour one, twin;
        int status;
        REQUIRE(stores[i] >= 0 && arrive(&one, stores[i]));
        twin = one;
        twin.memory = os_alloc(bytes_of(PAGES));
        fill(twin.memory, PAGES, 1);
        REQUIRE(ksmpy_register(one.engine, (uintptr_t)twin.memory, bytes_of(PAGES), 0,
                               &twin.region) == 0);
        scan(one.engine, KSMPY_SCAN_EAGER);
        scan(one.engine, KSMPY_SCAN_EAGER);
        CHECK(one.engine->pages.pages_in[PAGE_SHARED] == 2 * PAGES);
        one.engine->pages.store.head->spare_frames++; /* as if there were some to give back */
        memory_is_scarce = true;
        pid_t pid = fork();
        REQUIRE(pid >= 0);
        if (pid == 0)
            _exit(!asks_and_gives_back(&one));
        CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        memory_is_scarce = false;
        one.engine->pages.store.head->spare_frames--;
        CHECK(ksmpy_release(one.engine, twin.region, 0) == 0);
        os_unmap(twin.memory, bytes_of(PAGES));
        leave(&one);
    }
    close(stores[1]);
}

/* Whatever a head says of its arrays, a newcomer is refused before it follows that. */
static void a_head_that_says_too_much_is_refused(void)
{
    struct neighbour one, two;
    int store = os_memfd("ksmpy-store", 0);
    REQUIRE(store >= 0 && arrive(&one, store));
    struct store_head *head = one.engine->pages.store.head;
    const uint64_t sound_size = head->announced_size, sound_count = head->announced_count;
    const struct {
        uint64_t size, count;
    } damaged[] = {{(uint64_t)1 << 40, 0}, {sound_size - 1, 0}, {sound_size, 5}, {0, 1}, {1, 0}};
    for (size_t i = 0; i < sizeof damaged / sizeof damaged[0]; i++) {
        head->announced_size = damaged[i].size;
        head->announced_count = damaged[i].count;
        struct ksmpy_options options = {.nodes = 1, .store_fd = store};
        CHECK(ksmpy_engine_new(&options, &two.engine) == -EUCLEAN);
    }
    head->announced_size = sound_size;
    head->announced_count = sound_count;
    CHECK(arrive(&two, store));
    leave(&two);
    leave(&one);
    close(store);
}

static uint64_t key_of(int store)
{
    struct neighbour one, two;
    if (!arrive(&one, store) || !arrive(&two, store))
        return 0;
    uint64_t key = one.engine->pages.store.head->key;
    CHECK(two.engine->pages.store.head->key == key);
    CHECK(memcmp(&one.engine->pages.store.key, &two.engine->pages.store.key,
                 sizeof(struct checksum_key)) == 0);
    leave(&one);
    leave(&two);
    return key;
}

/* All that are on a store have one key, and no two stores the same. */
static void each_store_has_its_own_key(void)
{
    int first = os_memfd("ksmpy-store", 0), second = os_memfd("ksmpy-store", 0);
    REQUIRE(first >= 0 && second >= 0);
    uint64_t key = key_of(first);
    CHECK(key && key != key_of(second));
    ksmpy_fix_key(CHECKSUM_SEED);
    int third = os_memfd("ksmpy-store", 0);
    CHECK(third >= 0 && key_of(third) == CHECKSUM_SEED);
    ksmpy_fix_key(0);
    close(first);
    close(second);
    close(third);
}

int main(void)
{
    RUN(each_store_has_its_own_key);
    RUN(neighbours_come_to_share);
    RUN(neighbours_do_not_disturb_each_other);
    RUN(the_dead_are_reaped);
    RUN(a_child_goes_on_with_its_engine);
    RUN(a_child_keeps_what_it_could_not_note);
    RUN(a_child_gives_back_what_it_inherited);
    RUN(a_head_that_says_too_much_is_refused);
    return finish();
}
