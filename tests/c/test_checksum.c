/*
 * The checksum on data made to break it: what programs keep in memory is far
 * from random, and a weak sum collides on exactly that.
 */
#include "base/checksum.h"

#include "check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

enum { PAGE = 4096, WORDS = PAGE / 8 };

typedef union {
    uint64_t word[WORDS];
    unsigned char byte[PAGE];
} page;

/* Sums of a family of pages that all differ; there must be no two equal ones. */
struct sums {
    uint64_t *sum;
    size_t count, room;
};

static void add_sum(struct sums *sums, const page *data)
{
    if (sums->count == sums->room) {
        sums->room = sums->room ? 2 * sums->room : 1024;
        sums->sum = realloc(sums->sum, sums->room * sizeof(*sums->sum));
        if (!sums->sum)
            abort();
    }
    sums->sum[sums->count++] = checksum_of(data, PAGE);
}

static int by_value(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

/*
 * How many neighbours in order share their upper 48 bits.  Any 48 bits of a
 * good sum are as good as any other, and so few bits give the test some grip:
 * n sums have n^2 / 2^49 such pairs by chance.
 */
static size_t count_collisions(struct sums *sums, int bits)
{
    size_t collisions = 0;

    qsort(sums->sum, sums->count, sizeof(*sums->sum), by_value);
    for (size_t i = 1; i < sums->count; i++)
        collisions += sums->sum[i] >> (64 - bits) == sums->sum[i - 1] >> (64 - bits);
    free(sums->sum);
    *sums = (struct sums){NULL, 0, 0};
    return collisions;
}

static void fill_random(page *data, uint64_t *random)
{
    for (int i = 0; i < WORDS; i++)
        data->word[i] = next_random(random);
}

static void both_ways_give_the_same_sum(void)
{
    enum { ROOM = 5 * PAGE };
    static unsigned char data[ROOM + 64];
    uint64_t random = test_seed();

    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (unsigned char)next_random(&random);
    for (size_t length = 0; length <= ROOM; length += 64) {
        size_t offset = next_random(&random) % 64;

        CHECK(checksum_of(data + offset, length) == checksum_portable(data + offset, length));
        CHECK(read_words(data + offset, length) == read_words_portable(data + offset, length));
    }
}

static void extreme_words_give_the_same_sum(void)
{
    static const uint64_t extremes[] = {0, UINT64_MAX, 0xffffffff, 0xffffffff00000000,
                                        0x8000000080000000};
    page data;

    for (size_t i = 0; i < sizeof(extremes) / sizeof(extremes[0]); i++) {
        for (int w = 0; w < WORDS; w++)
            data.word[w] = extremes[i];
        CHECK(checksum_of(&data, PAGE) == checksum_portable(&data, PAGE));
    }
}

static void the_definition_does_not_drift(void)
{
    page data;

    memset(&data, 0, PAGE);
    CHECK(checksum_of(&data, 0) == 0x3762e809e95bf46a);
    CHECK(checksum_of(&data, PAGE) == 0x5eb787d6ed9dbb06);
    for (int i = 0; i < PAGE; i++)
        data.byte[i] = (unsigned char)(i * 7 + i / 256);
    CHECK(checksum_of(&data, 64) == 0xffaf54a1e6ba1085);
    CHECK(checksum_of(&data, PAGE) == 0xa1d7037f42e7c2c0);
}

static void one_or_two_flipped_bits_never_collide(void)
{
    struct sums sums = {NULL, 0, 0};
    page data;

    memset(&data, 0, PAGE);
    add_sum(&sums, &data);
    for (int first = 0; first < 8 * PAGE; first++) {
        data.byte[first / 8] ^= (unsigned char)(1 << first % 8);
        add_sum(&sums, &data);
        for (int step = 1; first + step < 8 * PAGE; step = step * 2 + 1) {
            int second = first + step;

            data.byte[second / 8] ^= (unsigned char)(1 << second % 8);
            add_sum(&sums, &data);
            data.byte[second / 8] ^= (unsigned char)(1 << second % 8);
        }
        data.byte[first / 8] ^= (unsigned char)(1 << first % 8);
    }
    CHECK(count_collisions(&sums, 48) == 0);
}

/* Each input bit flips about half of the output bits, wherever in the page it is. */
static void a_flipped_bit_changes_half_of_the_sum(void)
{
    uint64_t random = test_seed();
    int flips[64] = {0}, rounds = 0;
    page data;

    for (int round = 0; round < 4; round++) {
        fill_random(&data, &random);
        if (round == 0)
            memset(&data, 0, PAGE);
        for (int bit = 0; bit < 8 * PAGE; bit += 3, rounds++) {
            uint64_t before = checksum_of(&data, PAGE), changed;

            data.byte[bit / 8] ^= (unsigned char)(1 << bit % 8);
            changed = before ^ checksum_of(&data, PAGE);
            CHECK(__builtin_popcountll(changed) >= 8); /* chance: 2 in 10^10 */
            for (int i = 0; i < 64; i++)
                flips[i] += changed >> i & 1;
        }
    }
    for (int i = 0; i < 64; i++) /* 43 700 tosses: 2 % off is 8 standard deviations */
        CHECK(flips[i] > rounds * 0.48 && flips[i] < rounds * 0.52);
}

/* Reference counts, lengths, indices: pages that differ by a small number somewhere. */
static void one_small_word_anywhere_never_collides(void)
{
    static const uint64_t background[] = {0, UINT64_MAX, 0x3f8000003f800000 /* 1.0f, 1.0f */};
    struct sums sums = {NULL, 0, 0};
    page data;

    for (size_t kind = 0; kind < sizeof(background) / sizeof(background[0]); kind++) {
        for (int w = 0; w < WORDS; w++)
            data.word[w] = background[kind];
        for (int w = 0; w < WORDS; w++) {
            for (uint64_t value = 1; value < 256; value++) {
                data.word[w] = background[kind] ^ value;
                add_sum(&sums, &data);
                data.word[w] = background[kind] ^ value << 48;
                add_sum(&sums, &data);
            }
            data.word[w] = background[kind];
        }
    }
    CHECK(count_collisions(&sums, 48) == 0);
}

/* Small changes that leave every plain sum of the page as it was. */
static void changes_that_cancel_in_a_sum_never_collide(void)
{
    struct sums sums = {NULL, 0, 0};
    page data;

    for (int w = 0; w < WORDS; w++)
        data.word[w] = 1000;
    for (int first = 0; first < WORDS; first++) {
        for (int distance = 8; distance < 256; distance += 8) { /* the same lane */
            for (uint64_t delta = 1; delta <= 4; delta++) {
                page changed = data;

                changed.word[first] += delta;
                changed.word[(first + distance) % WORDS] -= 2 * delta;
                changed.word[(first + 2 * distance) % WORDS] += delta;
                if (distance == 8 * 32)
                    continue;
                add_sum(&sums, &changed);
                changed.word[(first + 2 * distance) % WORDS] = data.word[0];
                changed.word[(first + distance) % WORDS] += delta; /* +delta, -delta */
                add_sum(&sums, &changed);
            }
        }
    }
    CHECK(count_collisions(&sums, 48) == 0);
}

static void counters_never_collide(void)
{
    struct sums sums = {NULL, 0, 0};
    page data;

    for (uint64_t start = 0; start < 20000; start++) {
        for (int w = 0; w < WORDS; w++)
            data.word[w] = start + (uint64_t)w; /* an arange */
        add_sum(&sums, &data);
        for (int w = 0; w < WORDS; w++)
            data.word[w] = start + 1; /* a full() */
        add_sum(&sums, &data);
        for (int w = 0; w < WORDS; w++)
            data.word[w] = (start + 1) << 32 | (start + 1);
        add_sum(&sums, &data);
    }
    CHECK(count_collisions(&sums, 48) == 0);
}

static void sparse_pages_never_collide(void)
{
    struct sums sums = {NULL, 0, 0};
    uint64_t random = test_seed();
    page data;

    for (int i = 0; i < 200000; i++) {
        int set = 2 + i % 7, marks = 0;

        memset(&data, 0, PAGE);
        for (int j = 0; j < set; j++)
            data.byte[next_random(&random) % PAGE] ^= (unsigned char)(1 + j);
        for (int w = 0; w < WORDS; w++)
            marks += data.word[w] != 0;
        data.word[0] ^= (uint64_t)i << 32; /* two of them must not be equal */
        if (marks > 0)
            add_sum(&sums, &data);
    }
    CHECK(count_collisions(&sums, 48) == 0);
}

/* The page with the parts `a` and `b` of `size` bytes each having changed places. */
static page swapped(const page *data, int a, int b, int size)
{
    page result = *data;

    memcpy(result.byte + a * size, data->byte + b * size, (size_t)size);
    memcpy(result.byte + b * size, data->byte + a * size, (size_t)size);
    return result;
}

static void parts_that_trade_places_never_collide(void)
{
    static const int sizes[] = {4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048};
    uint64_t random = test_seed();
    struct sums sums = {NULL, 0, 0};
    page noise, small;

    fill_random(&noise, &random);
    for (int w = 0; w < WORDS; w++)
        small.word[w] = (uint64_t)w + 1; /* 4-byte parts: only every other one differs */
    add_sum(&sums, &noise);
    add_sum(&sums, &small);
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        int parts = PAGE / sizes[s];

        for (int a = 0; a < parts; a++) {
            for (int b = a + 1; b < parts && b < a + 24; b++) {
                page changed = swapped(&noise, a, b, sizes[s]);

                add_sum(&sums, &changed);
                if (sizes[s] == 4)
                    continue;
                changed = swapped(&small, a, b, sizes[s]);
                add_sum(&sums, &changed);
            }
        }
    }
    CHECK(count_collisions(&sums, 48) == 0);
}

static void rotated_pages_never_collide(void)
{
    struct sums sums = {NULL, 0, 0};
    uint64_t random = test_seed();
    page data, turned;

    fill_random(&data, &random);
    for (int by = 0; by < PAGE; by++) {
        for (int i = 0; i < PAGE; i++)
            turned.byte[(i + by) % PAGE] = data.byte[i];
        add_sum(&sums, &turned);
    }
    CHECK(count_collisions(&sums, 48) == 0);
}

/* A weak sum loses what a word holds when another word is special. Try the special ones. */
static void no_word_hides_another(void)
{
    uint64_t random = test_seed();
    struct sums sums = {NULL, 0, 0};
    page data;

    for (int round = 0; round < 64; round++) {
        fill_random(&data, &random);
        for (int w = 0; w < WORDS; w++) {
            uint64_t kept = data.word[w];

            data.word[w] = kept & 0xffffffff;
            add_sum(&sums, &data);
            data.word[w] = kept & 0xffffffff00000000;
            add_sum(&sums, &data);
            data.word[w] = ~kept;
            add_sum(&sums, &data);
            data.word[w] = kept << 32 | kept >> 32;
            add_sum(&sums, &data);
            data.word[w] = kept;
        }
    }
    CHECK(count_collisions(&sums, 48) == 0);
}

static void length_counts(void)
{
    static const unsigned char zeros[4 * PAGE];
    uint64_t last = checksum_of(zeros, 0);

    for (size_t length = 64; length <= sizeof(zeros); length += 64) {
        uint64_t sum = checksum_of(zeros, length);

        CHECK(sum != last);
        last = sum;
    }
}

static void blocks_of_long_data_keep_their_order(void)
{
    static page data[3], other[3];
    uint64_t random = test_seed(), sum;

    for (int i = 0; i < 3; i++)
        fill_random(&data[i], &random);
    sum = checksum_of(data, sizeof(data));
    for (int i = 0; i < 2; i++) {
        memcpy(other, data, sizeof(other));
        other[i] = data[i + 1];
        other[i + 1] = data[i];
        CHECK(checksum_of(other, sizeof(other)) != sum);
    }
}

static page live;
static atomic_int live_stop;

static void *write_live(void *unused)
{
    (void)unused;
    for (uint64_t i = 0; !atomic_load(&live_stop); i++)
        live.word[i % WORDS] = i;
    return NULL;
}

/* The engine does this all the time; ThreadSanitizer must know that it is meant. */
static void a_page_may_be_written_meanwhile(void)
{
    pthread_t writer;

    REQUIRE(pthread_create(&writer, NULL, write_live, NULL) == 0);
    for (int i = 0; i < 20000; i++) {
        checksum_of(&live, PAGE);
        checksum_portable(&live, PAGE);
        read_words(&live, PAGE);
        read_words_portable(&live, PAGE);
    }
    atomic_store(&live_stop, 1);
    pthread_join(writer, NULL);
    CHECK(checksum_of(&live, PAGE) == checksum_portable(&live, PAGE));
}

int main(void)
{
    RUN(both_ways_give_the_same_sum);
    RUN(extreme_words_give_the_same_sum);
    RUN(the_definition_does_not_drift);
    RUN(length_counts);
    RUN(blocks_of_long_data_keep_their_order);
    RUN(a_page_may_be_written_meanwhile);
    RUN(one_or_two_flipped_bits_never_collide);
    RUN(a_flipped_bit_changes_half_of_the_sum);
    RUN(one_small_word_anywhere_never_collides);
    RUN(changes_that_cancel_in_a_sum_never_collide);
    RUN(counters_never_collide);
    RUN(sparse_pages_never_collide);
    RUN(parts_that_trade_places_never_collide);
    RUN(rotated_pages_never_collide);
    RUN(no_word_hides_another);
    return finish();
}
