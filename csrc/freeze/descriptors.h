/*
 * The descriptors of a freezer, which the program may have closed.  Nothing here fails.
 */
#ifndef KSMPY_FREEZE_DESCRIPTORS_H
#define KSMPY_FREEZE_DESCRIPTORS_H

#include <stdbool.h>

#include "freeze/ops.h"

/* Makes all descriptors -1, and closes none. */
void freezer_forget_files(struct freezer *fz);
/* Marks the descriptors and remembers their files, so that freezer_has() can tell. */
void freezer_know_files(struct freezer *fz);
/* Closes those that are still the freezer's. */
void freezer_close_files(struct freezer *fz);
/*
 * Is this descriptor of the freezer's still what it was?  The program may have closed all it found,
 * and opened files of its own that have their numbers now.
 */
bool freezer_has(const struct freezer *fz, int fd);
bool freezer_has_files(const struct freezer *fz); /* all of them */

#endif
