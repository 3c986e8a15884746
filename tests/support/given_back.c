/* Many threads that give memory back at the same time, and look at once at what is there then. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096 };

static struct {
    uint8_t *memory;
    long threads, each;
    pthread_barrier_t begin;
    atomic_long stale;
} all;

static void *give_back(void *argument)
{
    static const uint8_t zeros[PAGE];
    long thread = (long)(intptr_t)argument;
    pthread_barrier_wait(&all.begin);
    for (long i = 0; i < all.each; i++) {
        uint8_t *page = all.memory + (i * all.threads + thread) * PAGE;
        if (madvise(page, PAGE, MADV_DONTNEED) || memcmp(page, zeros, PAGE) != 0)
            atomic_fetch_add(&all.stale, 1);
    }
    return NULL;
}

/* Each thread gives back so many pages, one by one: how many did not read as zeros right after. */
long give_back_at_once(uint8_t *memory, long threads, long each)
{
    pthread_t *ids = calloc((size_t)threads, sizeof *ids);
    all.memory = memory;
    all.threads = threads;
    all.each = each;
    atomic_store(&all.stale, 0);
    pthread_barrier_init(&all.begin, NULL, (unsigned)threads);
    for (long i = 0; i < threads; i++)
        if (pthread_create(&ids[i], NULL, give_back, (void *)(intptr_t)i))
            abort();
    for (long i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
    pthread_barrier_destroy(&all.begin);
    free(ids);
    return atomic_load(&all.stale);
}
