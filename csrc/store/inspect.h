/* A shared store as it looks from outside, by a descriptor of its file. */
#ifndef KSMPY_STORE_INSPECT_H
#define KSMPY_STORE_INSPECT_H

#include "ksmpy.h"

int inspect_stats(int fd, struct ksmpy_store_stats *out);
/* Writes up to max entries; returns how many there are. */
int64_t inspect_processes(int fd, struct ksmpy_store_process *out, int64_t max);
/* From now on nobody can attach. -EBUSY while any process does. */
int inspect_retire(int fd);

#endif
