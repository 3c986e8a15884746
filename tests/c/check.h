/*
 * A C test is a program: main() calls RUN() for each of its functions and
 * returns finish().  Exit status 0 passed, 1 failed, 77 everything skipped.
 * KSMPY_TEST_ONLY names the one function that is run; it fails if there is none.
 */
#ifndef KSMPY_TESTS_CHECK_H
#define KSMPY_TESTS_CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int check_passed, check_failed, check_skipped;
static int check_failures; /* of the running function */
static const char *check_skip_reason;

/* Reports a condition that does not hold and goes on. */
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);                       \
            check_failures++;                                                                      \
        }                                                                                          \
    } while (0)

/* For what the rest of the function cannot do without. */
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("%s:%d: cannot go on without: %s\n", __FILE__, __LINE__, #condition);           \
            check_failures++;                                                                      \
            return;                                                                                \
        }                                                                                          \
    } while (0)

#define SKIP(reason)                                                                               \
    do {                                                                                           \
        check_skip_reason = (reason);                                                              \
        return;                                                                                    \
    } while (0)

#define RUN(function) check_run(#function, function)

static inline void check_run(const char *name, void (*function)(void))
{
    const char *only = getenv("KSMPY_TEST_ONLY");
    if (only && strcmp(only, name) != 0)
        return;
    check_failures = 0;
    check_skip_reason = NULL;
    function();
    if (check_failures) {
        check_failed++;
        printf("FAILED  %s\n", name);
    } else if (check_skip_reason) {
        check_skipped++;
        printf("skipped %s: %s\n", name, check_skip_reason);
    } else {
        check_passed++;
        printf("ok      %s\n", name);
    }
    fflush(stdout);
}

static inline int finish(void)
{
    printf("%d passed, %d failed, %d skipped\n", check_passed, check_failed, check_skipped);
    if (check_failed || check_passed + check_skipped == 0)
        return 1;
    return check_passed ? 0 : 77;
}

/* Marsaglia's xorshift64*: the same numbers on every run from the same seed. */
static inline uint64_t next_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1d;
}

/* The seed of the random tests; KSMPY_TEST_SEED picks another. */
static inline uint64_t test_seed(void)
{
    const char *text = getenv("KSMPY_TEST_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 0) : 0;

    return seed ? seed : 20130208;
}

/* How long random tests go on, as a multiple of their usual length: KSMPY_TEST_EFFORT. */
static inline int test_effort(void)
{
    const char *text = getenv("KSMPY_TEST_EFFORT");
    int effort = text ? atoi(text) : 1;

    return effort > 0 ? effort : 1;
}

#endif
