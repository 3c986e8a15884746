/*
 * Whose memory a private anonymous mapping is, by what allocators write into it: a block, a heap of
 * a thread's arena or the main heap of glibc's malloc, an arena of CPython's for small objects.
 *
 * The memory may be written, unmapped or another's at any moment, and whoever wants to can write
 * there what malloc writes.  So an answer is good for one decision only: whether memory is one of
 * which its allocator does not expect zeros after MADV_DONTNEED.  glibc's malloc clears what it has
 * handed out before (calloc), whatever it has given back meanwhile, and what it maps anew is the
 * kernel's zeros; CPython only maps and unmaps.
 */
#ifndef KSMPY_OS_ALLOCATORS_H
#define KSMPY_OS_ALLOCATORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ksmpy.h"

/*
 * The size of the block that malloc has mapped for itself at the start of a page; 0 if none is
 * known there.  Reads the first words only.
 */
size_t allocators_block_size(const void *page);
/*
 * What is known of [start, end), mappings side by side, in order; neighbours of one owner are one.
 * heap: they are what brk() has made, which is malloc's main heap or not known.  Where malloc is
 * another one than glibc's nothing is malloc's.  Writes up to max; returns how many there are.
 * Between guard_open() and guard_close(), as allocators_block_size().
 */
int64_t allocators_find(uintptr_t start, uintptr_t end, bool heap, struct ksmpy_owned *out,
                        int64_t max);

#endif
