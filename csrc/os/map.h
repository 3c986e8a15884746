/*
 * Mappings: making, moving, protecting, filling and emptying them.
 *
 * A function answers 0 or a negative errno, and one that maps NULL without memory, address space
 * or mappings.  -ENOMEM may pass: it also says that there are too many mappings for a moment.
 */
#ifndef KSMPY_OS_MAP_H
#define KSMPY_OS_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Address space that costs nothing until it is committed; NULL when there is none. */
void *os_reserve(size_t bytes);
/* The same, whose place in a huge page is that of an address, or of an offset in a file. */
void *os_reserve_in_step(size_t bytes, uint64_t like);
/* Replaces what is at an address, which goes. */
int os_reserve_at(uintptr_t address, uint64_t n);
/* Is a part of it locked in memory? */
bool os_is_locked(uintptr_t address, uint64_t n);
int os_commit(void *address, size_t bytes);
void os_unmap(void *address, size_t bytes);
int os_dont_fork(void *address, size_t bytes);
void os_do_fork(void *address, size_t bytes); /* again */
void os_dont_dump(void *address, size_t bytes); /* into a core */
int os_do_dump(void *address, size_t bytes); /* again */
/*
 * Core dumps of this process, and of those that come of it, hold private mappings of files too, if
 * they hold private memory: overlays are such (core(5), coredump_filter).
 */
void os_dump_overlays(void);
/* Zero-filled private memory, NULL when out of it. */
void *os_alloc(size_t bytes);

/* The same, with its first page where the other address has its page in a huge page. */
void *os_alloc_in_step(size_t bytes, uintptr_t like);
/* The same for HUGE_PAGES pages, aligned as a huge page is. */
void *os_alloc_huge(void);

/*
 * Replaces whatever is mapped by frames of the store, copy-on-write.  After an error that is mapped
 * still, unless another thread has mapped something there meanwhile.
 */
int os_map_frames(uintptr_t address, uint64_t n, int memfd, uint64_t offset);
#define OS_MOVED_FOR_GOOD 1
/*
 * The same, where they are mapped elsewhere already; what was mapped there stays, but empty.  Where that
 * is not possible any more, nothing is left there: OS_MOVED_FOR_GOOD.
 */
int os_move_frames(uintptr_t to, uintptr_t from, uint64_t n, int memfd, uint64_t offset);
/* The same of memory: -errno, and a gap may be left, for want of anything but address space. */
int os_move_memory(uintptr_t to, uintptr_t from, uint64_t n);
/* As os_map_frames() with fresh anonymous memory that has the same flags (enum ksmpy_vma_flag). */
int os_map_anonymous(uintptr_t address, uint64_t n, int vma_flags);
/* Address space at an address, only if nothing is there, to be committed. */
int os_claim(uintptr_t address, uint64_t n);
/*
 * Claims pages that a call which has failed may have unmapped, and waits for memory to do so.  false:
 * they are mapped still, or by another thread by now.
 */
bool os_claim_gap(uintptr_t address, uint64_t n);
/*
 * The same as os_claim(), locked in memory if the program has all that is new locked.  counted: against what the
 * system has to commit, which other memory (MAP_NORESERVE) is not.
 */
int os_claim_as(uintptr_t address, uint64_t n, bool counted);
/*
 * Would the limits on address space and commitment allow n pages more?  mremap
 * asks that only after it has unmapped its target.
 */
bool os_can_map(uint64_t n);
bool os_is_mapped(uintptr_t page);
/* Of memory of our own: is the page there? One that was swapped out is not. */
bool os_is_there(uintptr_t page);
/* Copies pages to where others may have unmapped or protected memory: there nothing is done. */
void os_copy(uintptr_t to, uintptr_t from, uint64_t n);
/* Is all that is mapped from now on to be filled at once, and stay in memory (MCL_FUTURE)? */
bool os_locks_new_memory(void);
/* Does address space that is never touched count against a limit of the program's? */
bool os_is_rationed(void);
int os_set_vma_flags(uintptr_t address, uint64_t n, int vma_flags);
/*
 * Untouched memory after the one page at from, n in all; where it is then, if possible in step with
 * another address (see os_alloc_in_step()); or 0.
 */
uintptr_t os_grow(uintptr_t from, uint64_t n, uintptr_t like);
/* mremap onto an address, replacing what is there; keep: the old mapping stays, empty. */
int os_remap(uintptr_t to, uintptr_t from, uint64_t n, bool keep);
int os_protect(uintptr_t address, uint64_t n, bool writable);
/* MADV_DONTNEED, also of memory that mlockall() has locked: then that lock ends. */
int os_drop(uintptr_t address, uint64_t n);
/* Pages of a file leave our page tables; touched again, they come back. No harm if that fails. */
void os_look_away(uintptr_t address, uint64_t n);
/* Does memory with these flags get huge pages where it is touched? */
bool os_gives_huge_pages(int vma_flags);
/*
 * The kernel's own KSM leaves these pages alone from now on, and those that it shares get copies.
 */
int os_keep_from_ksm(uintptr_t address, uint64_t n);
/* Faults a range in, for reading or (breaking copy-on-write) for writing. */
int os_populate(uintptr_t address, uint64_t n, bool write);
/* Parts the pages from others that they are one folio with, where the kernel can do so. */
void os_split(uintptr_t address, uint64_t n);
/*
 * To be read later, a part at a time (os_protect), and in step with the file, so that its huge pages
 * can be mapped as such. mlockall() and core dumps would read all of it, and so fill the file.
 */
void *os_map_hidden(int fd, uint64_t offset, size_t bytes);
void *os_map_shared(int fd, uint64_t offset, size_t bytes, bool writable);
/*
 * Whole huge pages' places in a file in memory get huge pages, as far as they have any page yet.
 * Takes no more than it has to; -ENOMEM, -EAGAIN, -EBUSY: there is none to be had; -EINVAL: they are
 * not allowed, or unknown (before Linux 6.1).
 */
int os_collapse(uintptr_t address, uint64_t n);

#endif
