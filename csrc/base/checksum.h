/*
 * The page checksum: 64 bits, equal for equal bytes on every machine, and fast
 * enough that hashing cold memory costs what reading it costs.  It says "maybe
 * equal"; only memcmp says "equal".  Each store has a key of its own, at random:
 * who picks the bytes cannot make pages collide, unless it knows that key, and
 * then gets a slower search by it, not a wrong one.
 *
 * Definition, over little-endian 64-bit words, arithmetic modulo 2^64.  The
 * input is cut into blocks of 4096 bytes (the last may be shorter), a block
 * into stripes of 64 bytes, a stripe into eight lanes of one word.  key[0..511]
 * are the first outputs of splitmix64 from a seed: CHECKSUM_SEED, or a store's.
 *
 *   acc[i] = key[i]                                            i = 0 to 7
 *   for each block:
 *     for each stripe s of it, for each lane i, with w = word i:
 *       x = w ^ key[8 * s + i]
 *       acc[i]     += low32(x) * high32(x)      a product that every bit enters
 *       acc[i ^ 1] += w                         so that no lone word cancels out
 *     between two blocks:  acc[i] = mix(acc[i] ^ key[511 - i])
 *   h = length
 *   for i = 0 to 7:  h = mix(h ^ acc[i])
 *   result: mix(h)          mix(h) = (h ^ h >> 32) * M,  M = base/checksum.c's MIX
 *
 * Each word of a page meets a key of its own, hence words or blocks that trade
 * places change the sum.
 */
#ifndef KSMPY_CHECKSUM_H
#define KSMPY_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/*
 * Marks functions that read memory while its owner may be writing it: a race by
 * intent, since whatever they see is only a hint until the bytes are compared
 * again while frozen.  Keeps ThreadSanitizer quiet about it.
 */
#define KSMPY_READS_LIVE_MEMORY __attribute__((no_sanitize("thread")))

#define CHECKSUM_SEED 0x6b736d7079763031 /* "ksmpyv01" */
#define CHECKSUM_WORDS 512

struct checksum_key {
    uint64_t words[CHECKSUM_WORDS];
};
void checksum_make_key(struct checksum_key *key, uint64_t seed);
uint64_t checksum_keyed(const struct checksum_key *key, const void *data, size_t length);

/* length must be a multiple of 64; data may be aligned in any way. From CHECKSUM_SEED. */
uint64_t checksum_of(const void *data, size_t length);

/* The same value without vector instructions, whatever the machine has. */
uint64_t checksum_portable(const void *data, size_t length);

/*
 * The sum of the 64-bit words of data, read as fast as this machine can: the
 * yardstick for checksum_of().  length must be a multiple of 64.
 */
uint64_t read_words(const void *data, size_t length);
uint64_t read_words_portable(const void *data, size_t length);

/* The 48 bits of the checksum that records have room for. */
static inline uint64_t cut_sum(uint64_t sum)
{
    return sum & 0xffffffffffff;
}

#endif
