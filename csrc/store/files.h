/*
 * The descriptors of a store, which the program may have closed.  To open one fails as open() does.
 */
#ifndef KSMPY_STORE_FILES_H
#define KSMPY_STORE_FILES_H

#include <stdbool.h>

#include "store/store.h"

/* The file's descriptors, without looking into it; it is not mapped, and no slot is taken. */
int store_open(struct store *store, int fd);
/* None is open. */
void store_forget_files(struct store *store);
/*
 * Are the descriptors still those of the store? The program may have closed them all, and opened
 * files of its own that have their numbers.
 */
bool store_has_files(const struct store *store);
/*
 * The same of one: of that by which the file is written to, or that of the slots' locks.  To be asked right
 * before each call that changes the file, as a slice goes on for long, and right after each one whose
 * answer others rely on.
 */
bool store_has_write_file(const struct store *store);
bool store_has_lock_file(const struct store *store);
int store_know_files(struct store *store); /* remembers which they are */
void store_close_files(struct store *store);

#endif
