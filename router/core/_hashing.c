/* The loop of hashing.py in C, with the same hashes. What is changed here has to be changed there. */
#include "_loops.h"

#include <string.h>

static PyObject *chain(PyObject *module, PyObject *const *given, Py_ssize_t how_many) {
    Arguments all = arguments("chain", given, how_many, 3);
    npy_intp count;
    const unsigned char *data = some_bytes(&all, &count);
    npy_intp blocks = an_index(&all, NPY_MAX_INTP), seed = an_index(&all, NPY_MAX_INTP);
    demand(&all, blocks <= count / (BLOCK_WORDS * (npy_intp)sizeof(npy_uint64)), "data: as much as the blocks have");
    if (all.failed) return NULL;
    PyObject *hashes = PyTuple_New(blocks);
    if (hashes == NULL) return NULL;
    npy_uint64 so_far = (npy_uint64)seed, words[BLOCK_WORDS];
    EACH(block, blocks) {
        memcpy(words, data + block * (npy_intp)sizeof words, sizeof words);
        EACH(i, BLOCK_WORDS) {
            so_far = (so_far ^ words[i]) * (npy_uint64)MULTIPLIER;
            so_far ^= so_far >> SHIFT;
        }
        PyObject *hash = PyLong_FromUnsignedLongLong(so_far >> 1);
        if (hash == NULL) {
            Py_DECREF(hashes);
            return NULL;
        }
        PyTuple_SET_ITEM(hashes, block, hash);
    }
    return hashes;
}

static PyMethodDef loops[] = {A_LOOP(chain), {NULL}};

A_MODULE(_hashing, loops)
