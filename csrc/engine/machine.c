/* What can be asked without an engine: of the machine, of this process, of the checksum. */
#include "base/checksum.h"
#include "base/pages.h"
#include "os/allocators.h"
#include "os/devices.h"
#include "os/forks.h"
#include "os/guard.h"
#include "os/memory.h"
#include "os/own_memory.h"
#include "os/presence.h"
#include "os/probe.h"

int ksmpy_probe(struct ksmpy_caps *caps)
{
    fork_hold(); /* a child would inherit what it tries */
    os_probe(caps);
    fork_let_go();
    return 0;
}

int ksmpy_has_devices(void)
{
    return os_has_devices();
}

int ksmpy_try_huge_frames(void)
{
    fork_hold(); /* as above */
    int error = os_try_huge_file();
    fork_let_go();
    return error;
}

int64_t ksmpy_memory_left(char *which, size_t size)
{
    struct os_memory memory;
    int error = os_memory_open(&memory);
    if (error)
        return error;
    uint64_t left = os_memory_left(&memory, which, size);
    os_memory_close(&memory);
    return (int64_t)least(left << PAGE_SHIFT, INT64_MAX);
}

int64_t ksmpy_own_memory(struct ksmpy_range *out, int64_t max)
{
    return os_own_memory(out, max);
}

int64_t ksmpy_find_owners(uintptr_t start, uintptr_t end, int heap, struct ksmpy_owned *out,
                          int64_t max)
{
    sigset_t mask;
    guard_open(&mask);
    int64_t count = allocators_find(start, end, heap, out, max);
    guard_close(&mask);
    return count;
}

uintptr_t ksmpy_next_in_memory(uintptr_t start, uintptr_t end)
{
    return presence_next(start, end);
}

uint64_t ksmpy_checksum(const void *data, size_t length)
{
    return checksum_of(data, length);
}

uint64_t ksmpy_read_only(const void *data, size_t length)
{
    return read_words(data, length);
}
