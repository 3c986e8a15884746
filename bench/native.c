/*
 * Measured loops that Python is too slow, or not parallel enough, to run.
 * Called through ctypes, so the GIL is free meanwhile.
 */

#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

enum { BUCKET_NS = 100, BUCKETS = 200000 }; /* 20 ms; what is longer lands in the last one */

struct latencies {
    uint64_t touches;
    uint64_t longest_ns;
    uint32_t bucket[BUCKETS];
};

static uint64_t now_ns(void)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static uint64_t next_random(uint64_t *state) /* xorshift64, Marsaglia 2003 */
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void note(struct latencies *out, uint64_t ns)
{
    uint64_t bucket = ns / BUCKET_NS;

    out->touches++;
    out->bucket[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
    if (ns > out->longest_ns)
        out->longest_ns = ns;
}

/* Reads one byte of a random page, again and again, until *stop; how long each read took. */
void touch_pages(const volatile uint8_t *base, uint64_t pages, const atomic_int *stop,
                 struct latencies *out)
{
    uint64_t state = 0x2545F4914F6CDD1Du;

    while (!atomic_load_explicit(stop, memory_order_relaxed)) {
        uint64_t page = next_random(&state) % pages;
        uint64_t begin = now_ns();

        (void)base[page * 4096];
        note(out, now_ns() - begin);
    }
}

/* Writes `count` words all over the range, at random places. */
void write_words(volatile uint64_t *base, uint64_t words, uint64_t count)
{
    uint64_t state = 0x9E3779B97F4A7C15u;

    while (count--) {
        uint64_t random = next_random(&state);

        base[random % words] = random;
    }
}

/* Changes the first byte of every page of the range. */
void write_each_page(volatile uint8_t *base, uint64_t pages)
{
    for (uint64_t page = 0; page < pages; page++)
        base[page * 4096] += 1;
}
