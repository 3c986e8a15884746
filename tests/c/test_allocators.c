/* Whose memory it is: what malloc and CPython write, and what only looks like it. */
#include "os/allocators.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "os/guard.h"
#include "os/presence.h"
#include "pages.h"

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)
#define MOST 64

static struct ksmpy_owned found[MOST];

static uint64_t pages_asked;

/* In the place of the C library's. */
int mincore(void *start, size_t bytes, unsigned char *present)
{
    pages_asked += bytes / PAGE_SIZE;
    return (int)syscall(SYS_mincore, start, bytes, present);
}

static int64_t look(void *start, size_t bytes, bool heap)
{
    sigset_t mask;
    guard_open(&mask);
    int64_t count = allocators_find((uintptr_t)start, (uintptr_t)start + bytes, heap, found, MOST);
    guard_close(&mask);
    return count;
}

/* Bytes that one of them has of a range. */
static size_t owned(void *start, size_t bytes, uint32_t owner)
{
    uintptr_t from = (uintptr_t)start, to = from + bytes;
    size_t sum = 0;
    for (int64_t i = 0, count = look(start, bytes, false); i < count; i++) {
        CHECK(found[i].start >= from && found[i].end <= to && found[i].start < found[i].end);
        if (found[i].owner == owner)
            sum += found[i].end - found[i].start;
    }
    return sum;
}

static size_t malloced(void *start, size_t bytes)
{
    return owned(start, bytes, KSMPY_OWNER_MALLOC);
}

/* Memory of nobody's, with something in each page. */
static uint8_t *mapped(size_t bytes)
{
    uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        abort();
    memset(memory, 0xab, bytes);
    return memory;
}

static void put_header(uint8_t *at, uint64_t before, uint64_t size)
{
    memcpy(at, &before, sizeof before);
    memcpy(at + sizeof before, &size, sizeof size);
}

static void put_pool(uint8_t *pool, uint32_t class)
{
    uint32_t size = (class + 1) * 16;
    uint32_t words[] = {0, class, 48 + 2 * size, (16 << 10) - size};
    memset(pool, 0, 48);
    memcpy(pool + 32, words, sizeof words);
}

static void real_blocks(void)
{
    for (int power = 4; power < 23; power++)
        for (int realloced = 0; realloced < 3; realloced++) {
            size_t bytes = 40 * MIB;
            void *memory;
            REQUIRE(posix_memalign(&memory, power < 5 ? sizeof memory : 1u << power, bytes) == 0);
            if (realloced)
                memory = realloc(memory, bytes = realloced == 1 ? 36 * MIB : 44 * MIB);
            memset(memory, 1, bytes);
            uint64_t words[2];
            memcpy(words, (uint8_t *)memory - sizeof words, sizeof words);
            uint8_t *block = (uint8_t *)memory - 16 - words[0];
            size_t whole = words[0] + (words[1] & ~(uint64_t)7);
            whole = (whole + PAGE_SIZE - 1) / PAGE_SIZE * PAGE_SIZE;
            CHECK(words[1] & 2);
            size_t known = malloced(block, whole);
            /* Of one that has grown after memalign() the first header tells the old size. */
            CHECK(realloced == 2 ? known >= bytes - 4 * MIB && known <= whole : known == whole);
            free(memory);
        }
}

static void a_shrunk_block_ends_where_it_ends(void)
{
    size_t bytes = 8 * MIB;
    uint8_t *memory = mapped(bytes);
    put_header(memory, 0, bytes | 2);
    put_header(memory + 48, 48, (4 * MIB - 48) | 2);
    CHECK(malloced(memory, bytes) == 4 * MIB);
    put_header(memory + 48, 48, (16 * MIB - 48) | 2); /* a program's own words */
    CHECK(malloced(memory, bytes) == bytes);
    munmap(memory, bytes);
}

static void both_layouts(void)
{
    uint8_t *memory = mapped(2 * MIB);
    put_header(memory, 0, MIB | 2);
    put_header(memory + MIB, 0, (MIB - 16) | 2); /* since 2.43 */
    CHECK(malloced(memory, 2 * MIB) == 2 * MIB);
    CHECK(allocators_block_size(memory) == MIB && allocators_block_size(memory + MIB) == MIB);
    static const uint64_t wrong[][2] = {
        {8, 0x100002}, {0, 0x100003}, {0, 0x100006},     {0, 0x100000},
        {0, 0x100802}, {0, 2},        {0, 0x1000000002}, {0, ~(uint64_t)0xffd},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        put_header(memory, wrong[i][0], wrong[i][1]);
        CHECK(malloced(memory, 2 * MIB) == MIB); /* the second one ends where the mapping does */
    }
    munmap(memory, 2 * MIB);
}

static void what_only_looks_like_a_block(void)
{
    size_t bytes = 8 * MIB;
    uint8_t *memory = mapped(bytes);
    put_header(memory + 2 * MIB, 0, MIB | 2);
    CHECK(malloced(memory, bytes) == 0);
    put_header(memory + 3 * MIB, 0, MIB | 2);
    CHECK(malloced(memory, bytes) == 2 * MIB); /* one behind the other */
    put_header(memory + 3 * MIB, 0, 5 * MIB | 2);
    CHECK(malloced(memory, bytes) == 6 * MIB); /* to the end */
    put_header(memory, 0, bytes | 2);
    CHECK(malloced(memory, bytes) == bytes); /* what is in a block is its owner's */
    munmap(memory, bytes);
}

static void foreign_memory_beside_blocks(void)
{
    uint8_t *memory = mapped(16 * MIB);
    put_header(memory, 0, 4 * MIB | 2);
    put_header(memory + 8 * MIB, 0, 4 * MIB | 2);
    put_header(memory + 12 * MIB, 0, 4 * MIB | 2);
    CHECK(malloced(memory, 16 * MIB) == 12 * MIB);
    CHECK(found[0].end == (uintptr_t)memory + 4 * MIB);
    CHECK(found[1].start == (uintptr_t)memory + 8 * MIB);
    munmap(memory, 16 * MIB);
}

/* A page of arenas is where the last one ends, and pools begin at multiples of their size. */
static void blocks_between_arenas(void)
{
    uint8_t *memory = mapped(16 * MIB);
    for (size_t page = 0; page < 4; page++) {
        uint8_t *arena = (uint8_t *)(((uintptr_t)memory + MIB) & ~(uintptr_t)(16 * KIB - 1));
        arena += MIB - page * PAGE_SIZE;
        memset(memory, 0xab, 16 * MIB);
        put_pool(arena + page * PAGE_SIZE, 3);
        put_header(arena + MIB, 0, 4 * MIB | 2);
        CHECK(malloced(memory, 16 * MIB) == 4 * MIB);
        CHECK(owned(memory, 16 * MIB, KSMPY_OWNER_PYTHON) >= MIB - 3 * PAGE_SIZE);
        put_pool(arena + page * PAGE_SIZE, 64);
        CHECK(malloced(memory, 16 * MIB) == 0);
    }
    munmap(memory, 16 * MIB);
}

/* Whole arenas at the end of a mapping: what lies before them is not theirs, to the page. */
static void memory_before_arenas(void)
{
    uint8_t *all = mapped(17 * MIB);
    uint8_t *memory = (uint8_t *)(((uintptr_t)all + 16 * KIB - 1) & ~(uintptr_t)(16 * KIB - 1));
    memset(memory, 0xab, 16 * MIB);
    for (int arenas = 1; arenas < 4; arenas++) {
        put_pool(memory + (16 - arenas) * MIB, 3);
        CHECK(owned(memory, 16 * MIB, KSMPY_OWNER_PYTHON) == arenas * MIB);
        CHECK(found[0].start == (uintptr_t)memory + (16 - arenas) * MIB);
    }
    munmap(all, 17 * MIB);
}

static void arenas_of_threads(void)
{
    size_t heap_bytes = 64 * MIB;
    uint8_t *room = mmap(NULL, 4 * heap_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(room != MAP_FAILED);
    uint8_t *heap = (uint8_t *)(((uintptr_t)room + heap_bytes - 1) & -heap_bytes);
    REQUIRE(mprotect(heap, 2 * MIB, PROT_READ | PROT_WRITE) == 0);
    REQUIRE(mprotect(heap + heap_bytes, 2 * MIB, PROT_READ | PROT_WRITE) == 0);
    uint64_t first[] = {(uint64_t)heap + 48, 0, MIB, 2 * MIB};
    uint64_t next[] = {(uint64_t)heap + 48, (uint64_t)heap, 2 * MIB, 2 * MIB};
    memcpy(heap, first, sizeof first);
    memcpy(heap + heap_bytes, next, sizeof next);
    CHECK(malloced(heap, 2 * MIB) == 2 * MIB);
    CHECK(malloced(heap + heap_bytes, 2 * MIB) == 2 * MIB);
    CHECK(malloced(heap, MIB) == 0); /* does not end where it says */
    for (int word = 0; word < 4; word++) {
        uint64_t bent[4];
        memcpy(bent, next, sizeof bent);
        bent[word] += word < 2 ? heap_bytes : PAGE_SIZE;
        memcpy(heap + heap_bytes, bent, sizeof bent);
        CHECK((malloced(heap + heap_bytes, 2 * MIB) == 0) == (word != 1));
    }
    munmap(room, 4 * heap_bytes);
}

static void the_main_heap(void)
{
    uint8_t *memory = mapped(MIB);
    put_header(memory, 0, 0x291);
    put_header(memory + 0x290, 0, 0x1011);
    put_header(memory + 0x290 + 0x1010, 0, (MIB - 0x290 - 0x1010) | 1); /* the top */
    CHECK(look(memory, MIB, true) == 1 && found[0].owner == KSMPY_OWNER_MALLOC);
    CHECK(found[0].start == (uintptr_t)memory && found[0].end == (uintptr_t)memory + MIB);
    put_header(memory + 0x290, 0, 0x1013);
    CHECK(look(memory, MIB, true) == 0);
    put_header(memory + 0x290, 0, 2 * MIB | 1);
    CHECK(look(memory, MIB, true) == 0);
    memset(memory, 0, MIB);
    CHECK(look(memory, MIB, true) == 0);
    munmap(memory, MIB);
}

/* Nothing comes into memory by a look, and what is unmapped meanwhile is nobody's. */
static void what_is_not_there(void)
{
    size_t bytes = 64 * MIB;
    uint8_t *memory = mapped(bytes);
    madvise(memory, bytes, MADV_DONTNEED);
    madvise(memory, bytes, MADV_NOHUGEPAGE);
    CHECK(malloced(memory, bytes) == 0);
    unsigned char *present = calloc(bytes / PAGE_SIZE, 1);
    REQUIRE(present && mincore(memory, bytes, present) == 0);
    for (size_t i = 0; i < bytes / PAGE_SIZE; i++)
        CHECK(!(present[i] & 1));
    free(present);
    munmap(memory, bytes);
    CHECK(malloced(memory, bytes) == 0);
}

/* An arena's first page need not be in memory: that of its first whole pool is. */
static void what_is_reserved_is_passed_over(void)
{
    size_t room_bytes = 64 * KIB * MIB, at = 40 * KIB * MIB;
    uint8_t *room = mmap(NULL, room_bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    struct ksmpy_caps caps;
    REQUIRE(ksmpy_probe(&caps) == 0);
    if (room == MAP_FAILED || !caps.pagemap_scan)
        SKIP("so much cannot be reserved, or PAGEMAP_SCAN is missing");
    madvise(room, room_bytes, MADV_NOHUGEPAGE);
    uint8_t *pool = (uint8_t *)(((uintptr_t)room + at) & -(16 * KIB));
    uintptr_t start = (uintptr_t)room, end = (uintptr_t)pool + 20 * KIB * MIB + PAGE_SIZE;
    CHECK(presence_next(start, end) == end);
    put_pool(pool, 2);
    pool[2 * MIB] = 1;
    CHECK(presence_next(start, end) == (uintptr_t)pool);
    CHECK(presence_next((uintptr_t)pool + PAGE_SIZE, end) == (uintptr_t)pool + 2 * MIB);
    CHECK(presence_next((uintptr_t)pool, (uintptr_t)pool + PAGE_SIZE) == (uintptr_t)pool);
    pages_asked = 0;
    CHECK(look(room, end - start, false) == 1 && found[0].owner == KSMPY_OWNER_PYTHON);
    CHECK(found[0].start == (uintptr_t)pool - 3 * PAGE_SIZE);
    CHECK(pages_asked < at / PAGE_SIZE / 64);
    munmap(room, room_bytes);
    CHECK(presence_next(start, end) == end);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MALLOC_IS_REPLACED true
#else
#define MALLOC_IS_REPLACED false
#endif

int main(void)
{
    RUN(what_is_not_there);
    RUN(what_is_reserved_is_passed_over);
    if (MALLOC_IS_REPLACED)
        return finish();
    RUN(real_blocks);
    RUN(a_shrunk_block_ends_where_it_ends);
    RUN(both_layouts);
    RUN(what_only_looks_like_a_block);
    RUN(foreign_memory_beside_blocks);
    RUN(blocks_between_arenas);
    RUN(memory_before_arenas);
    RUN(arenas_of_threads);
    RUN(the_main_heap);
    return finish();
}
