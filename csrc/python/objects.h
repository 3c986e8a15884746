/*
 * Finding what large memory Python's objects have, without a trace.  A reference that is held for
 * a moment can be noticed: numpy refuses to resize an array that has one more than it should, and a
 * tuple that a thread is still filling, as tuple(generator) does, cannot be finished (SystemError).
 * And what dies only when the look lets go of it may be missed: a file that its last owner, and not
 * the program, closes is short until then.  So arrays, bytes, bytearrays, tuples, what has a
 * finalizer and what is young are only looked at, from one call that does not let go of the GIL.
 */
#ifndef KSMPY_OBJECTS_H
#define KSMPY_OBJECTS_H

#include <Python.h>

#include <stdint.h>
#include <string.h>

#include "python/interpreter.h"

/* Of the stable interface since Python 3.4, 3.9 and 3.10; the version asked for may be an older one. */
extern void *PyType_GetSlot(PyTypeObject *type, int slot);
extern int PyObject_GC_IsTracked(PyObject *object);
extern int PyGC_Disable(void), PyGC_Enable(void);
#ifndef Py_tp_traverse
#define Py_tp_traverse 71
#endif
#ifndef Py_tp_descr_get
#define Py_tp_descr_get 54
#endif
#ifndef Py_tp_finalize
#define Py_tp_finalize 80
#endif

/*
 * How many views lie between a view and its array, or untracked containers in one another, at most:
 * it bounds the recursion.
 */
#define OBJECTS_DEPTH 16
/*
 * So many at each end of the collector's list are young: it begins with those that no collection has
 * met, and ends with those that came last to the old ones.  Among 600 000 objects the call that keeps
 * the GIL took 39 ms with them, and 27 without.
 */
#define OBJECTS_YOUNG 20000
#define OBJECTS_HAVE_GC (1UL << 14) /* Py_TPFLAGS_HAVE_GC */

enum {
    OBJECT_UNKNOWN,
    OBJECT_ARRAY,
    OBJECT_BYTES,
    OBJECT_BYTEARRAY,
    OBJECT_CONTAINER,
    OBJECT_OTHER
};

/* Of struct PyArrayObject_fields, part of numpy's binary interface since its version 1.7. */
struct object_array {
    Py_ssize_t references;
    void *type;
    char *data;
    int dimensions;
    intptr_t *shape, *strides;
    PyObject *base, *descr;
    int flags;
};
#define OBJECT_CONTIGUOUS 3 /* in the order of C or Fortran */

struct object_search {
    PyObject *kinds; /* dict: type -> one of the above */
    PyObject *array_type; /* or None */
    PyObject *nbytes; /* the descriptor of an array's size */
    PyObject *asked; /* tuple of types whose objects are handed over */
    Py_ssize_t min_bytes;
    PyObject *found; /* list of (address, bytes, key, type of the container) */
    PyObject *others; /* list of (object, key, type of the container) */
    PyObject *key; /* borrowed, or NULL */
    PyObject *container; /* borrowed: the tracked one */
    int depth;
    int failed;
};

static int object_is_asked(struct object_search *search, PyObject *object)
{
    for (Py_ssize_t i = 0; i < PyTuple_Size(search->asked); i++)
        if (PyType_IsSubtype(Py_TYPE(object), (PyTypeObject *)PyTuple_GetItem(search->asked, i)))
            return 1;
    return 0;
}

static int object_kind(struct object_search *search, PyObject *object)
{
    PyObject *type = (PyObject *)Py_TYPE(object), *known = PyDict_GetItem(search->kinds, type);
    if (known)
        return (int)PyLong_AsLong(known);
    int kind = OBJECT_UNKNOWN;
    if (search->array_type != Py_None &&
        PyType_IsSubtype(Py_TYPE(object), (PyTypeObject *)search->array_type))
        kind = OBJECT_ARRAY;
    else if (PyType_IsSubtype(Py_TYPE(object), &PyBytes_Type))
        kind = OBJECT_BYTES;
    else if (PyType_IsSubtype(Py_TYPE(object), &PyByteArray_Type))
        kind = OBJECT_BYTEARRAY;
    else if (object_is_asked(search, object))
        kind = OBJECT_OTHER;
    else if (PyType_GetFlags(Py_TYPE(object)) & OBJECTS_HAVE_GC &&
             !PyType_IsSubtype(Py_TYPE(object), &PyType_Type)) /* types in C cannot be traversed */
        kind = OBJECT_CONTAINER;
    PyObject *value = PyLong_FromLong(kind);
    search->failed |= !value || PyDict_SetItem(search->kinds, type, value) < 0;
    Py_XDECREF(value);
    return kind;
}

static void object_found(struct object_search *search, const char *address, Py_ssize_t bytes)
{
    if (bytes < search->min_bytes)
        return;
    PyObject *item = Py_BuildValue("KnOO", (unsigned long long)(uintptr_t)address, bytes,
                                   search->key ? search->key : Py_None, Py_TYPE(search->container));
    search->failed |= !item || PyList_Append(search->found, item) < 0;
    Py_XDECREF(item);
}

/* A view stands for the array behind it, which all of the memory belongs to. */
static void object_array_found(struct object_search *search, PyObject *object)
{
    struct object_array *array = (struct object_array *)object;
    for (int i = 0; i < OBJECTS_DEPTH && array->base; i++) {
        if (!PyType_IsSubtype(Py_TYPE(array->base), (PyTypeObject *)search->array_type))
            break;
        array = (struct object_array *)array->base;
    }
    if (!(array->flags & OBJECT_CONTIGUOUS))
        return;
    descrgetfunc get = (descrgetfunc)PyType_GetSlot(Py_TYPE(search->nbytes), Py_tp_descr_get);
    PyObject *bytes = get ? get(search->nbytes, (PyObject *)array, (PyObject *)array->type) : NULL;
    if (bytes)
        object_found(search, array->data, PyLong_AsSsize_t(bytes));
    else
        PyErr_Clear();
    Py_XDECREF(bytes);
}

static void object_traverse(struct object_search *search, PyObject *container);

static int object_visit(PyObject *object, void *data)
{
    struct object_search *search = data;
    if (!object || search->failed)
        return search->failed;
    switch (object_kind(search, object)) {
    case OBJECT_ARRAY:
        object_array_found(search, object);
        break;
    case OBJECT_BYTES:
        object_found(search, PyBytes_AsString(object), PyBytes_Size(object));
        break;
    case OBJECT_BYTEARRAY:
        object_found(search, PyByteArray_AsString(object), PyByteArray_Size(object));
        break;
    case OBJECT_CONTAINER: /* the collector knows the others by itself */
        if (!PyObject_GC_IsTracked(object) && search->depth < OBJECTS_DEPTH)
            object_traverse(search, object);
        break;
    case OBJECT_OTHER: {
        PyObject *item = Py_BuildValue("OOO", object, search->key ? search->key : Py_None,
                                       Py_TYPE(search->container));
        search->failed |= !item || PyList_Append(search->others, item) < 0;
        Py_XDECREF(item);
        break;
    }
    default:
        break;
    }
    return search->failed;
}

static void object_traverse(struct object_search *search, PyObject *container)
{
    PyObject *key, *value, *before = search->key;
    Py_ssize_t at = 0;
    search->depth++;
    if (PyDict_Check(container)) {
        while (PyDict_Next(container, &at, &key, &value) && !search->failed) {
            search->key = PyUnicode_Check(key) ? key : before;
            object_visit(value, search);
        }
    } else {
        traverseproc traverse = (traverseproc)PyType_GetSlot(Py_TYPE(container), Py_tp_traverse);
        if (traverse)
            traverse(container, object_visit, search);
    }
    search->key = before;
    search->depth--;
}

static int object_search_begins(struct object_search *search, void *query)
{
    *search = (struct object_search){.key = NULL};
    if (!PyArg_ParseTuple(query, "OOOOn", &search->kinds, &search->array_type, &search->nbytes,
                          &search->asked, &search->min_bytes))
        return 0;
    search->found = PyList_New(0);
    search->others = PyList_New(0);
    search->failed = !search->found || !search->others;
    return 1;
}

/* rest: a list of what is still to be looked into, or NULL. */
static PyObject *object_search_ends(struct object_search *search, PyObject *rest)
{
    PyObject *answer = NULL;
    if (!search->failed)
        answer = rest ? Py_BuildValue("OOO", search->found, search->others, rest)
                      : Py_BuildValue("OO", search->found, search->others);
    if (!answer && !PyErr_Occurred())
        PyErr_NoMemory();
    Py_XDECREF(search->found);
    Py_XDECREF(search->others);
    return answer;
}

static void object_look_into(struct object_search *search, PyObject *container)
{
    search->container = container;
    object_traverse(search, container);
}

/*
 * Looks at what each of a list's objects refers to. query: (kinds, array type or None, descriptor
 * of nbytes or None, asked, min_bytes); the answer: (found, others).  No collection begins
 * meanwhile: it may run code that lets go of the GIL, and others may then change what is traversed.
 */
static PyObject *ksmpy_look_into(void *containers, void *query)
{
    struct object_search search;
    if (!object_search_begins(&search, query))
        return NULL;
    int collects = PyGC_Disable();
    Py_ssize_t count = search.failed ? 0 : PyList_Size(containers);
    for (Py_ssize_t i = 0; i < count && !search.failed; i++)
        object_look_into(&search, PyList_GetItem(containers, i));
    PyObject *answer = object_search_ends(&search, NULL);
    if (collects)
        PyGC_Enable();
    return answer;
}

static int object_would_notice(struct object_search *search, PyObject *object)
{
    return Py_TYPE(object) == &PyTuple_Type || object_kind(search, object) == OBJECT_ARRAY ||
           PyType_GetSlot(Py_TYPE(object), Py_tp_finalize);
}

/* Looks into the variables of a frame, and of those that wait for it. */
static void object_look_into_stack(struct object_search *search, PyObject *frame)
{
    Py_INCREF(frame);
    while (frame && frame != Py_None && !search->failed) {
        PyObject *variables = PyObject_GetAttrString(frame, "f_locals"), *copy = PyDict_New();
        if (variables && copy && PyDict_Update(copy, variables) == 0)
            object_look_into(search, copy);
        else
            search->failed = 1;
        Py_XDECREF(variables);
        Py_XDECREF(copy);
        PyObject *waiting = search->failed ? NULL : PyObject_GetAttrString(frame, "f_back");
        Py_DECREF(frame);
        frame = waiting;
        search->failed |= !frame;
    }
    Py_XDECREF(frame);
}

/*
 * get_frames: sys._current_frames.  A frame that is held when its function returns keeps its variables.
 * Other interpreters' threads are among the answers.  Those may have a lock and an allocator of their
 * own, and would free the frame's object, which is made here, while they run.
 */
static void object_look_into_stacks(struct object_search *search, PyObject *get_frames)
{
    PyObject *frames = PyObject_CallObject(get_frames, NULL), *thread, *frame;
    Py_ssize_t at = 0;
    search->failed |= !frames;
    while (!search->failed && PyDict_Next(frames, &at, &thread, &frame))
        object_look_into_stack(search, frame);
    Py_XDECREF(frames);
}

/*
 * Looks into those of the collector's objects to which no reference may be kept, and into the
 * variables of all threads, unless get_frames is None or there are other interpreters; the answer:
 * (found, others, the rest of the objects).  No collection begins meanwhile.
 */
static PyObject *ksmpy_look_around(void *get_objects, void *get_frames, void *query)
{
    struct object_search search;
    if (!object_search_begins(&search, query))
        return NULL;
    int collects = PyGC_Disable();
    if (get_frames != Py_None && interpreter_is_alone() && !search.failed)
        object_look_into_stacks(&search, get_frames);
    PyObject *objects = PyObject_CallObject(get_objects, NULL), *rest = PyList_New(0);
    search.failed |= !objects || !rest;
    Py_ssize_t count = search.failed ? 0 : PyList_Size(objects);
    for (Py_ssize_t i = 0; i < count && !search.failed; i++) {
        PyObject *object = PyList_GetItem(objects, i);
        if (i < OBJECTS_YOUNG || i >= count - OBJECTS_YOUNG || object_would_notice(&search, object))
            object_look_into(&search, object);
        else
            search.failed |= PyList_Append(rest, object) < 0;
    }
    Py_XDECREF(objects);
    PyObject *answer = object_search_ends(&search, rest);
    Py_XDECREF(rest);
    if (collects)
        PyGC_Enable();
    return answer;
}

#endif
