/*
 * mremap() as a library in C calls it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>

void *moving_call(void *from, size_t before, size_t after, int flags, void *to)
{
    return mremap(from, before, after, flags, to);
}

/* Is what this library calls another function than the C library's? */
int moving_is_led(void)
{
    return (void *)mremap != dlsym(RTLD_DEFAULT, "mremap");
}

struct watch {
    volatile const unsigned char *byte;
    atomic_bool begun, over;
    bool was_zero;
};

static void *look(void *data)
{
    struct watch *watch = data;
    do {
        watch->was_zero |= !*watch->byte;
        watch->begun = true;
    } while (!watch->over);
    return NULL;
}

/* The same, while another thread reads a byte: has that been zero?  -1: the call has failed. */
int moving_watched_call(void *from, size_t before, size_t after, int flags, void *to,
                        const unsigned char *byte)
{
    struct watch watch = {.byte = byte};
    pthread_t thread;
    if (pthread_create(&thread, NULL, look, &watch) != 0)
        return -1;
    while (!watch.begun)
        sched_yield();
    bool failed = mremap(from, before, after, flags, to) == MAP_FAILED;
    watch.over = true;
    pthread_join(thread, NULL);
    return failed ? -1 : watch.was_zero;
}
