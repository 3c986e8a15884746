/*
 * System calls that fail because a page was frozen are made again.
 *
 * Where the kernel's own accesses to frozen pages fail instead of waiting (freeze/bystanders.h), the
 * calls of libraries in C are led here (os/imports.h).  What failed with EFAULT while anything was
 * frozen waits until that is thawed, and is tried again; a read of a file that came back short goes
 * on where it stopped.  So the caller sees what it would have seen if the kernel had waited.
 *
 * That is so for calls which have done nothing when they fail with EFAULT, and for what sockets give
 * only once beside their bytes (freeze/receiving.h).  Others stay as they are: a datagram or an event
 * counter that could not be handed over is gone.  And so are calls that nobody can lead here: those
 * that the C library makes for itself, as for fgets() and getline(), and those of programs that make
 * theirs without it, as Go's do.
 *
 * Copies between processes are also found among what is called by its number (freeze/cross_memory.h).
 * sigaltstack() is led too, to freeze/signal_stacks.h, what blocks signals to freeze/signal_masks.h, and
 * mremap() to freeze/moving.h.
 */
#ifndef KSMPY_FREEZE_RETRIES_H
#define KSMPY_FREEZE_RETRIES_H

/* Leads here what was loaded since the last call.  Forks are to be kept away. */
void retries_lead(void);

#endif
