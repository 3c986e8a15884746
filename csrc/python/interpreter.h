/*
 * The interpreter's lock (the GIL), for csrc/freeze/bystanders.h, its main thread, for
 * csrc/freeze/signal_stacks.h, and whether there are other interpreters in this process.
 */
#ifndef KSMPY_INTERPRETER_H
#define KSMPY_INTERPRETER_H

#include <Python.h>

#include <stdlib.h>

#include "freeze/bystanders.h"
#include "freeze/signal_stacks.h"

/* Not of the stable interface, and therefore weak: they may be gone one day. */
extern PyInterpreterState *PyInterpreterState_Head(void) __attribute__((weak));
extern PyInterpreterState *PyInterpreterState_Main(void) __attribute__((weak));

#define THREAD_STATE 8192 /* bytes, more than what the interpreter keeps of a thread takes */

/*
 * The interpreter makes a record of the thread each time.  Where there is no memory for that Python
 * 3.11 writes to address 0, and others end the process: so it is asked for before.
 */
static int take_the_gil(void)
{
    void *volatile room = malloc(THREAD_STATE);
    if (!room)
        return -1;
    free(room);
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

/*
 * Whether the main interpreter, whose lock the caller has, is the only one, and stays so as long as
 * the caller keeps that lock: only who runs in an interpreter makes another one. The one made last
 * is the head of the list.
 */
static int interpreter_is_alone(void)
{
    return PyInterpreterState_Head && PyInterpreterState_Main &&
           PyInterpreterState_Head() == PyInterpreterState_Main();
}

/* What a function returns, or None, without a call, where there are other interpreters. */
static PyObject *ksmpy_call_alone(void *function)
{
    if (interpreter_is_alone())
        return PyObject_CallObject(function, NULL);
    Py_INCREF(Py_None);
    return Py_None;
}

#endif
