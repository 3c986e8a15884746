/*
 * The interpreter's lock (the GIL), for csrc/freeze/bystanders.h.
 */
#ifndef KSMPY_INTERPRETER_H
#define KSMPY_INTERPRETER_H

#include <Python.h>

#include "freeze/bystanders.h"

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

#endif
