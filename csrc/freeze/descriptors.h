/*
 * The descriptors of a freezer, which the program may have closed.  Nothing here fails.
 */
#ifndef KSMPY_FREEZE_DESCRIPTORS_H
#define KSMPY_FREEZE_DESCRIPTORS_H

#include <stdbool.h>

#include "freeze/ops.h"

/* None is open. */
void freezer_forget_files(struct freezer *fz);
/* Remembers which files they are. */
void freezer_know_files(struct freezer *fz);
/* Those that still are. */
void freezer_close_files(struct freezer *fz);
/*
 * Is this descriptor of the freezer's still what it was?  The program may have closed all it found,
 * and opened files of its own that have their numbers now.
 */
bool freezer_has(const struct freezer *fz, int fd);
bool freezer_has_files(const struct freezer *fz); /* all of them */

#endif
