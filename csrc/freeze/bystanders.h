/*
 * Where a system call that touches a frozen page fails, nothing is frozen beside one.
 *
 * A userfaultfd that an ordinary user gets does not answer faults of the kernel's, and memory
 * without the right to write does not let the kernel write either.  Then read(2) into a frozen page
 * ends early or with EFAULT, and a program that does not ask how much it got goes on with wrong
 * bytes.  Nothing tells beforehand that a thread is going to read.  But a thread of a Python
 * program needs the interpreter's lock (the GIL) before it can do anything: so a thread of ours
 * takes that, the other threads are looked at, and only if all of them wait, in calls that do not
 * touch the pages, these are frozen.
 *
 * What is left: threads that run no Python code.  One that computes, as it seems, may read all the
 * same, and one that waits may be woken, by a timer or from outside.  Most of their calls are made
 * again then (freeze/retries.h).
 */
#ifndef KSMPY_FREEZE_BYSTANDERS_H
#define KSMPY_FREEZE_BYSTANDERS_H

#include <stdbool.h>
#include <stdint.h>

#include "os/calls.h"

/*
 * Takes the interpreter's lock, or says with a negative number that there is no memory for that; and
 * what gives that back.  They may end the thread.
 */
typedef int take_interpreter(void);
typedef void return_interpreter(int state);
/* Without this call, and after one with NULLs, nobody is looked at. */
void bystanders_know_interpreter(take_interpreter *take, return_interpreter *give_back);
/* The interpreter is about to end, and its lock not to be taken any more: not to be called with it. */
void bystanders_interpreter_ends(void);

/* Of one freezer; all 0: nobody is looked at. */
struct bystanders {
    bool matter; /* calls fail that touch a frozen page */
    bool held; /* the interpreter's lock is ours for now */
    uint64_t patient_until; /* ns */
    const _Atomic int *awaited; /* see bystanders_be_patient() */
    struct os_runners runners;
};

void bystanders_open(struct bystanders *bystanders, bool matter);
void bystanders_close(struct bystanders *bystanders);
/* In a forked child: no freezer is open any more. */
void bystanders_forget(void);

/*
 * Keeps the other threads from making system calls on n pages.  Waits 0.2 s at most for the
 * interpreter's lock, and not for a thread that may be in such a call, unless it is to be patient.
 * true, and bystanders_let_go() is to follow; false: a thread may be in such a call, or nobody can
 * tell.  Nothing may be frozen, nor any lock held that a thread with the interpreter's lock waits
 * for, except by fork().
 */
bool bystanders_hold(struct bystanders *bystanders, int tasks_fd, uintptr_t address, uint64_t n);
/*
 * From now on, for 0.3 s, bystanders_hold() waits for threads that run, unless somebody waits for
 * the caller: *awaited is not 0.
 */
void bystanders_be_patient(struct bystanders *bystanders, const _Atomic int *awaited);
/* The same as well as it can be done: calls may fail all the same. */
void bystanders_hold_if_can(struct bystanders *bystanders, int tasks_fd, uintptr_t address,
                            uint64_t n);
void bystanders_let_go(struct bystanders *bystanders);

/* From the first call to the second a fork wants the engines: nobody waits for the interpreter. */
void bystanders_hurry(void);
/*
 * Waits until the thread has given the interpreter's lock back: a child that C code forks, and that
 * goes on to run Python code, would wait for ever.  To be called with all that freezes at rest.
 */
void bystanders_settle(void);
void bystanders_need_not_hurry(void);

#endif
