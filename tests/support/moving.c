/*
 * mremap() as a library in C calls it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
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
