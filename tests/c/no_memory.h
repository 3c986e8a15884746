/* No more memory for this process, for a while. */
#ifndef KSMPY_TESTS_NO_MEMORY_H
#define KSMPY_TESTS_NO_MEMORY_H

#include <stdbool.h>
#include <sys/resource.h>

/* From now on what is asked for is refused (ENOMEM); false: that cannot be had here. */
static inline bool take_all_memory(struct rlimit *before)
{
    if (getrlimit(RLIMIT_DATA, before))
        return false;
    struct rlimit none = {.rlim_cur = 1, .rlim_max = before->rlim_max};
    return setrlimit(RLIMIT_DATA, &none) == 0;
}

static inline bool give_memory_back(const struct rlimit *before)
{
    return setrlimit(RLIMIT_DATA, before) == 0;
}

#endif
