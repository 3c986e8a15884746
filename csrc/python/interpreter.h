/*
 * The interpreter's lock (the GIL), for csrc/freeze/bystanders.h, and its main thread, for
 * csrc/freeze/signal_stacks.h.
 */
#ifndef KSMPY_INTERPRETER_H
#define KSMPY_INTERPRETER_H

#include <Python.h>

#include "freeze/bystanders.h"
#include "freeze/signal_stacks.h"

static int take_the_gil(void)
{
    return (int)PyGILState_Ensure();
}

static void return_the_gil(int state)
{
    PyGILState_Release((PyGILState_STATE)state);
}

static void ksmpy_know_interpreter(void)
{
    bystanders_know_interpreter(take_the_gil, return_the_gil);
}

static void ksmpy_know_no_interpreter(void)
{
    bystanders_know_interpreter(NULL, NULL);
}

static void ksmpy_interpreter_ends(void)
{
    bystanders_interpreter_ends();
}

static int note_own_stack(void *unused)
{
    (void)unused;
    signal_stacks_note_own();
    return 0;
}

/*
 * The alternate signal stack of the main thread, faulthandler's for one, is known once that runs
 * Python code again: any thread may make an engine.
 */
static void ksmpy_note_main_stack(void)
{
    Py_AddPendingCall(note_own_stack, NULL);
}

#endif
