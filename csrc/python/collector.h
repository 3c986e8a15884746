/*
 * What Python's garbage collector tells, taken in without running Python code.
 *
 * A signal's handler that is written in Python waits until the main thread runs Python code. Were
 * that a callback of the collector's, what the handler raises would be dropped there, and Ctrl-C
 * with it. So the callback is in C, and what it has Python do comes later, as a pending call, out
 * of which exceptions find their way.
 */
#ifndef KSMPY_COLLECTOR_H
#define KSMPY_COLLECTOR_H

#include <Python.h>

#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Public since Python 3.11, though not of the stable interface, and therefore weak. */
extern void PyThreadState_EnterTracing(PyThreadState *state) __attribute__((weak));
extern void PyThreadState_LeaveTracing(PyThreadState *state) __attribute__((weak));

enum { NOT_DUE, DUE, DUE_AFTER_ALL }; /* after a collection of the young, or of all objects */

static _Thread_local int collecting;
static _Atomic int sweep_due;
/* A function of one argument, whether all objects were looked at; NULL as the interpreter ends. */
static PyObject *sweep;

static int run_sweep(void *unused)
{
    (void)unused;
    int due = atomic_exchange(&sweep_due, NOT_DUE);
    if (sweep == NULL)
        return 0;
    PyObject *result = PyObject_CallFunction(sweep, "i", due == DUE_AFTER_ALL);
    int rc = result == NULL ? -1 : 0;
    Py_XDECREF(result);
    return rc;
}

/*
 * In a thread that traces or profiles, as for debuggers and coverage, Python 3.11 goes on to the
 * first line of a function only when no pending call is left. Inside of one no other is made, so
 * the sweep's functions would never begin while one is waiting, of a collection in between or of
 * anyone's.
 */
static int run_pending_sweep(void *unused)
{
    PyThreadState *state = PyThreadState_Get();
    if (PyThreadState_EnterTracing)
        PyThreadState_EnterTracing(state);
    int rc = run_sweep(unused);
    if (PyThreadState_LeaveTracing)
        PyThreadState_LeaveTracing(state);
    return rc;
}

static int collected_all(PyObject *info)
{
    PyObject *generation = PyDict_GetItemString(info, "generation");
    return generation != NULL && PyLong_AsLong(generation) == 2;
}

/* For gc.callbacks; called with the GIL held, as the two below are. */
static void ksmpy_collection(void *phase, void *info)
{
    collecting = PyUnicode_CompareWithASCIIString(phase, "start") == 0;
    if (collecting || sweep == NULL)
        return;
    int due = collected_all(info) ? DUE_AFTER_ALL : DUE;
    int before = atomic_load(&sweep_due);
    if (before < due)
        atomic_store(&sweep_due, due);
    if (syscall(SYS_gettid) != getpid())
        run_sweep(NULL); /* no handler runs in this thread */
    else if (before == NOT_DUE && Py_AddPendingCall(run_pending_sweep, NULL) != 0)
        atomic_store(&sweep_due, NOT_DUE); /* too many calls pending: the next collection asks */
}

static void ksmpy_sweep_by(void *function)
{
    Py_XINCREF((PyObject *)function);
    sweep = function;
}

/* Whether this thread is inside a collection. */
static int ksmpy_collecting(void)
{
    return collecting;
}

#endif
