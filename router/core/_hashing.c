/* The loop of hashing.py in C, with the same hashes. What is changed here has to be changed there. */
#include "_loops.h"

static PyObject *chain(PyObject *module, PyObject *const *given, Py_ssize_t how_many) {
    Arguments all = arguments("chain", given, how_many, 3);
    Array words = read_from(&all, NPY_UINT64, 1);
    npy_intp seed = an_index(&all, NPY_MAX_INTP);
    Array hashes = written_to(&all, NPY_UINT64, 1);
    npy_intp blocks = hashes.shape[0];
    demand(&all, blocks <= words.shape[0] / BLOCK_WORDS, "words: as many as the blocks have");
    if (all.failed) return NULL;
    const npy_uint64 *word = words.data;
    npy_uint64 so_far = (npy_uint64)seed;
    EACH(block, blocks) {
        EACH(i, BLOCK_WORDS) {
            so_far = (so_far ^ *word++) * (npy_uint64)MULTIPLIER;
            so_far ^= so_far >> SHIFT;
        }
        ((npy_uint64 *)hashes.data)[block] = so_far >> 1;
    }
    Py_RETURN_NONE;
}

static PyMethodDef loops[] = {A_LOOP(chain), {NULL}};

A_MODULE(_hashing, loops)
