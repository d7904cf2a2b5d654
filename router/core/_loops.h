/* What the C loops have in common: arguments that are checked before any is read, and arithmetic as Python has it.
 *
 * A loop is handed arrays by position. Each has to be a C-contiguous, aligned ndarray of the right type and number of
 * axes, and writable where the loop writes it; whatever is not is refused with TypeError, so nothing is read or written
 * beyond an array, nor in one that is read-only. The checks cost some nanoseconds an argument. numpy's headers are
 * needed to build this, but none of its functions: only what an array says of itself is read.
 */
#ifndef HEADROOM_LOOPS_H
#define HEADROOM_LOOPS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#include <numpy/ndarraytypes.h>

#include <math.h>

#include "_constants.h"

#define EACH(name, count) for (npy_intp name = 0; name < (count); name++)

/* -- arguments ----------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *loop;
    PyObject *const *given;
    int at;     /* the next one */
    int failed; /* with an exception set */
} Arguments;

static PyTypeObject *ndarray; /* numpy's, once the module is loaded */

static inline Arguments arguments(const char *loop, PyObject *const *given, Py_ssize_t count, Py_ssize_t wanted) {
    Arguments all = {loop, given, 0, count != wanted};
    if (all.failed) PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, not %zd", loop, wanted, count);
    return all;
}

static inline double a_float(Arguments *all) {
    if (all->failed) return 0.0;
    PyObject *given = all->given[all->at++];
    if (PyFloat_CheckExact(given)) return PyFloat_AS_DOUBLE(given);
    double number = PyFloat_AsDouble(given);
    all->failed = number == -1.0 && PyErr_Occurred() != NULL;
    return number;
}

/* At least 0 and less than `end`. */
static inline npy_intp an_index(Arguments *all, npy_intp end) {
    if (all->failed) return 0;
    npy_intp number = PyLong_AsSsize_t(all->given[all->at++]);
    if (number == -1 && PyErr_Occurred() != NULL) {
        all->failed = 1;
    } else if (number < 0 || number >= end) {
        all->failed = 1;
        PyErr_Format(PyExc_IndexError, "%s: argument %d: %zd is not from 0 to %zd", all->loop, all->at, number, end - 1);
    }
    return all->failed ? 0 : number;
}

typedef struct {
    void *data;
    const npy_intp *shape;
} Array;

static const npy_intp NO_SHAPE[NPY_MAXDIMS] = {0};

static inline Array an_array(Arguments *all, int type, int axes, int flags) {
    Array none = {NULL, NO_SHAPE};
    if (all->failed) return none;
    PyArrayObject *given = (PyArrayObject *)all->given[all->at++];
    if (Py_TYPE(given) == ndarray && PyArray_NDIM(given) == axes && PyArray_CHKFLAGS(given, flags) &&
        PyArray_DESCR(given)->type_num == type && PyArray_ISNOTSWAPPED(given)) {
        Array found = {PyArray_DATA(given), PyArray_DIMS(given)};
        return found;
    }
    all->failed = 1;
    PyErr_Format(PyExc_TypeError, "%s: argument %d is not a C-contiguous%s array of %d axes and its type", all->loop,
                 all->at, flags & NPY_ARRAY_WRITEABLE ? ", writable" : "", axes);
    return none;
}

static inline Array read_from(Arguments *all, int type, int axes) {
    return an_array(all, type, axes, NPY_ARRAY_CARRAY_RO);
}

static inline Array written_to(Arguments *all, int type, int axes) {
    return an_array(all, type, axes, NPY_ARRAY_CARRAY);
}

/* The bytes of a bytes object, and how many they are. */
static inline const unsigned char *some_bytes(Arguments *all, npy_intp *count) {
    *count = 0;
    if (all->failed) return NULL;
    PyObject *given = all->given[all->at++];
    if (PyBytes_CheckExact(given)) {
        *count = PyBytes_GET_SIZE(given);
        return (const unsigned char *)PyBytes_AS_STRING(given);
    }
    all->failed = 1;
    PyErr_Format(PyExc_TypeError, "%s: argument %d is not bytes", all->loop, all->at);
    return NULL;
}

/* A list, and how many items it has. */
static inline PyObject *a_list(Arguments *all, npy_intp *count) {
    *count = 0;
    if (all->failed) return NULL;
    PyObject *given = all->given[all->at++];
    if (PyList_CheckExact(given)) {
        *count = PyList_GET_SIZE(given);
        return given;
    }
    all->failed = 1;
    PyErr_Format(PyExc_TypeError, "%s: argument %d is not a list", all->loop, all->at);
    return NULL;
}

static inline void demand(Arguments *all, int holds, const char *what) {
    if (all->failed || holds) return;
    all->failed = 1;
    PyErr_Format(PyExc_ValueError, "%s: %s", all->loop, what);
}

/* Slots are columns of every array that is handed beside them; `end`: of the one that has fewest. */
static inline void demand_slots(Arguments *all, const npy_intp *slots, npy_intp count, npy_intp end) {
    if (all->failed) return;
    int beyond = 0;
    EACH(i, count) beyond |= (npy_uintp)slots[i] >= (npy_uintp)end;
    demand(all, !beyond, "a slot is beyond the end of an array");
}

static inline npy_intp least_of(npy_intp a, npy_intp b) { return b < a ? b : a; }

/* Done at import: where ndarray is to be found. */
static inline int find_ndarray(void) {
    PyObject *numpy = PyImport_ImportModule("numpy");
    if (numpy == NULL) return -1;
    ndarray = (PyTypeObject *)PyObject_GetAttrString(numpy, "ndarray");
    Py_DECREF(numpy);
    return ndarray == NULL ? -1 : 0;
}

#define A_LOOP(function) {#function, (PyCFunction)(void (*)(void))function, METH_FASTCALL, NULL}

/* The module `name` with these methods. */
#define A_MODULE(name, methods)                                                                                        \
    static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, #name, NULL, -1, methods};                          \
    PyMODINIT_FUNC PyInit_##name(void) { return find_ndarray() < 0 ? NULL : PyModule_Create(&definition); }

/* -- arithmetic ---------------------------------------------------------------------------------------------------- */

/* Of equal numbers the first, as Python's max and min; also where one is no number. */
static inline double max2(double a, double b) { return b > a ? b : a; }
static inline double min2(double a, double b) { return b < a ? b : a; }
static inline double max3(double a, double b, double c) { return max2(max2(a, b), c); }

/* The place in a table that a number falls on, `most` at most; 0 for no number. */
static inline npy_intp place_below(double place, npy_intp most) {
    if (place >= (double)most) return most;
    return place > 0.0 ? (npy_intp)place : 0;
}

#endif
