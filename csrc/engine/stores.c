/* Stores, without an engine that is attached to them. */
#include "ksmpy.h"
#include "store/attach.h"
#include "store/inspect.h"
#include "store/rules.h"

int64_t ksmpy_store_holder(int fd)
{
    return store_holder(fd);
}

int ksmpy_store_stats(int fd, struct ksmpy_store_stats *out)
{
    return inspect_stats(fd, out);
}

int64_t ksmpy_store_processes(int fd, struct ksmpy_store_process *out, int64_t max)
{
    return inspect_processes(fd, out, max);
}

int ksmpy_store_retire(int fd)
{
    return inspect_retire(fd);
}

void ksmpy_fix_key(uint64_t seed)
{
    store_fix_key(seed);
}
