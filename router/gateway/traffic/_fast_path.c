/* The loop of fast_path.py in C: reads of plain tokens go from an engine's socket to a client's.
 *
 * A stream is here while every read of it is whole chunks that each hold one event with a token, as its Meter has
 * learnt them. What is anything else, or cannot be sent at once, is returned; it is then the event loop's again. A plain
 * event is what Meter.passes counts without a further look: what is changed there has to be changed here.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifdef __linux__

#include <errno.h>
#include <string.h>
#include <structmember.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    READ_BYTES = 1 << 16,
    BATCH = 256,      /* streams in one call: the others are still ready in the next turn of the loop */
    TAIL_BYTES = 4096, /* kept of a read */
    SHORT_BYTES = 64,  /* a read up to this long is joined to the one before: not here */
    SIZE_DIGITS = 7,
    EDGES_MAX = 64,
};

typedef struct Stream Stream;

typedef struct {
    PyObject_HEAD
    int epoll;
    int count; /* edges */
    double edges[EDGES_MAX];
    Stream *first; /* of those that are here: each is kept alive by it */
    char *buffer;
} Streams;

typedef struct {
    char *data;
    Py_ssize_t size, room;
} Kept;

struct Stream {
    PyObject_HEAD
    Streams *streams;
    Stream *before, *after;
    PyObject *owner, *gaps;
    int source, sink;
    int here; /* it is watched */
    Kept opening, newest, older; /* of the newest two reads their ends */
    unsigned char end;
    Py_ssize_t end_at;
    Py_ssize_t events, body_bytes, reads;
    double heard_s, last_s, before_s, gap_max_s;
};

/* -- bytes that are kept --------------------------------------------------------------------------------------------- */

static int keep(Kept *kept, const char *data, Py_ssize_t size) {
    if (size > kept->room) {
        Py_ssize_t room = (size + 63) & ~(Py_ssize_t)63;
        char *made = PyMem_Realloc(kept->data, (size_t)room);
        if (made == NULL) return -1;
        kept->data = made;
        kept->room = room;
    }
    if (size) memcpy(kept->data, data, (size_t)size);
    kept->size = size;
    return 0;
}

static void drop(Kept *kept) {
    PyMem_Free(kept->data);
    kept->data = NULL;
    kept->size = kept->room = 0;
}

/* -- what a read is -------------------------------------------------------------------------------------------------- */

/* One event in a chunk of its own, which ends at `stop`: with a token, as far as its begin and its end show. */
static int is_plain(const Stream *stream, const char *text, const char *stop) {
    Py_ssize_t size = stop - text;
    if (size <= stream->opening.size + 3 || stop[-1] != '\n') return 0;
    const char *line_end;
    if (stop[-2] == '\n') line_end = stop - 2;
    else if (stop[-2] == '\r' && stop[-3] == '\n') line_end = stop - 3;
    else return 0;
    if (memcmp(text, stream->opening.data, (size_t)stream->opening.size) != 0) return 0;
    Py_ssize_t end_at = stream->end_at - 2; /* which counts the line end of the chunk */
    if (end_at < 1 || size < end_at || (unsigned char)stop[-end_at] != stream->end) return 0;
    const char *after = text + stream->opening.size;
    if (memchr(after, '\n', (size_t)(line_end - after)) != NULL) return 0;
    return memmem(after, (size_t)(line_end - after), "\"error\"", 7) == NULL;
}

/* Whether one of several events in a read may be an error, the end of a reply or a statement of usage: Meter's
 * is_suspect. */
static int is_suspect(const char *data, Py_ssize_t size) {
    static const char *const words[] = {"rror", "_tokens\"", "failed", "\"detail\"", "omplete", "\"message\"", "\"msg\""};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (memmem(data, (size_t)size, words[i], strlen(words[i])) != NULL) return 1;
    return 0;
}

static int hexadecimal(unsigned char digit) {
    if (digit >= '0' && digit <= '9') return digit - '0';
    digit |= 0x20;
    return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

/* How many events a read has that begins where a chunk does: 0: whole chunks that hold something else than plain events,
 * -1: not even whole chunks, or the last one of the body. */
static Py_ssize_t events_in(const Stream *stream, const char *at, Py_ssize_t size) {
    const char *begin = at, *end = at + size;
    Py_ssize_t count = 0;
    int plain = 1;
    if (size <= SHORT_BYTES) plain = 0;
    while (at < end) {
        Py_ssize_t length = 0;
        int digits = 0, digit;
        while (at < end && digits < SIZE_DIGITS && (digit = hexadecimal((unsigned char)*at)) >= 0) {
            length = length * 16 + digit;
            digits++;
            at++;
        }
        if (length == 0 || end - at < 2 || at[0] != '\r' || at[1] != '\n') return -1;
        at += 2;
        if (end - at < length + 2) return -1;
        const char *stop = at + length;
        if (stop[0] != '\r' || stop[1] != '\n') return -1;
        plain = plain && is_plain(stream, at, stop);
        count++;
        at = stop + 2;
    }
    return plain && !(count > 1 && is_suspect(begin, size)) ? count : 0;
}

/* A read of so many plain events has passed. -1: no memory. */
static int account(Stream *stream, const char *data, Py_ssize_t size, Py_ssize_t count, double now_s) {
    Kept oldest = stream->older;
    Py_ssize_t kept = size < TAIL_BYTES ? size : TAIL_BYTES;
    if (keep(&oldest, data + size - kept, kept) < 0) return -1;
    stream->older = stream->newest;
    stream->newest = oldest;

    double gap_s = now_s - stream->last_s;
    stream->before_s = stream->last_s;
    stream->heard_s = stream->last_s = now_s;
    stream->events += count;
    stream->body_bytes += size;
    stream->reads++;
    if (gap_s > stream->gap_max_s) stream->gap_max_s = gap_s;

    const Streams *streams = stream->streams;
    int edge = 0;
    while (edge < streams->count && streams->edges[edge] < gap_s) edge++;
    Py_ssize_t more[2][2] = {{edge, 1}, {0, count - 1}};
    for (int i = 0; i < 2; i++) {
        if (!more[i][1]) continue;
        if (PyList_GET_SIZE(stream->gaps) <= streams->count) break; /* it was made shorter */
        PyObject *counted = PyLong_FromSsize_t(PyLong_AsSsize_t(PyList_GET_ITEM(stream->gaps, more[i][0])) + more[i][1]);
        if (counted == NULL) return -1;
        PyList_SetItem(stream->gaps, more[i][0], counted);
    }
    return 0;
}

/* -- one stream ------------------------------------------------------------------------------------------------------ */

static void unlink_stream(Stream *stream) {
    if (!stream->here) return;
    stream->here = 0;
    if (stream->before != NULL) stream->before->after = stream->after;
    else stream->streams->first = stream->after;
    if (stream->after != NULL) stream->after->before = stream->before;
    stream->before = stream->after = NULL;
    Py_DECREF(stream);
}

static void leave(Stream *stream) {
    if (!stream->here) return;
    struct epoll_event unused = {0};
    epoll_ctl(stream->streams->epoll, EPOLL_CTL_DEL, stream->source, &unused);
    unlink_stream(stream);
}

static int enter(Stream *stream) {
    Streams *streams = stream->streams;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = stream};
    if (epoll_ctl(streams->epoll, EPOLL_CTL_ADD, stream->source, &event) < 0) return -1;
    Py_INCREF(stream);
    stream->here = 1;
    stream->before = NULL;
    stream->after = streams->first;
    if (streams->first != NULL) streams->first->before = stream;
    streams->first = stream;
    return 0;
}

/* How many of these bytes the client's socket takes now. */
static Py_ssize_t sent(const Stream *stream, const char *data, Py_ssize_t size) {
    Py_ssize_t done;
    do done = send(stream->sink, data, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (done < 0 && errno == EINTR);
    return done < 0 ? 0 : done;
}

/* expect(opening, end, end_at): what plain events begin and end with. */
static PyObject *Stream_expect(Stream *stream, PyObject *args) {
    const char *opening;
    Py_ssize_t size, end_at;
    unsigned char end;
    if (!PyArg_ParseTuple(args, "y#bn:expect", &opening, &size, &end, &end_at)) return NULL;
    if (keep(&stream->opening, opening, size) < 0) return PyErr_NoMemory();
    stream->end = end;
    stream->end_at = end_at;
    Py_RETURN_NONE;
}

/* begin(heard_s, last_s, before_s, gap_max_s, events, body_bytes, newest, older): its counts so far. */
static PyObject *Stream_begin(Stream *stream, PyObject *args) {
    const char *newest, *older;
    Py_ssize_t newest_size, older_size;
    if (!PyArg_ParseTuple(args, "ddddnny#y#:begin", &stream->heard_s, &stream->last_s, &stream->before_s,
                          &stream->gap_max_s, &stream->events, &stream->body_bytes, &newest, &newest_size, &older,
                          &older_size))
        return NULL;
    if (keep(&stream->newest, newest, newest_size) < 0 || keep(&stream->older, older, older_size) < 0)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* events_in(data): of a read that begins where a chunk does. */
static PyObject *Stream_events_in(Stream *stream, PyObject *data) {
    char *text;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(data, &text, &size) < 0) return NULL;
    return PyLong_FromSsize_t(events_in(stream, text, size));
}

/* count(data, events, now_s): a read of so many plain events passes. */
static PyObject *Stream_count(Stream *stream, PyObject *args) {
    const char *data;
    Py_ssize_t size, count;
    double now_s;
    if (!PyArg_ParseTuple(args, "y#nd:count", &data, &size, &count, &now_s)) return NULL;
    if (account(stream, data, size, count, now_s) < 0) return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* enter(source, sink, data): send *data*, and pass on what comes from now on. Returns how many of its bytes were sent: all,
 * else the stream is not here, since the others have to wait. -1: the source cannot be watched, and nothing was sent. */
static PyObject *Stream_enter(Stream *stream, PyObject *args) {
    const char *data;
    Py_ssize_t size;
    int source, sink;
    if (!PyArg_ParseTuple(args, "iiy#:enter", &source, &sink, &data, &size)) return NULL;
    if (stream->here) {
        PyErr_SetString(PyExc_ValueError, "it is here already");
        return NULL;
    }
    stream->source = source;
    stream->sink = sink;
    if (stream->streams->epoll < 0 || enter(stream) < 0) return PyLong_FromLong(-1);
    Py_ssize_t done = sent(stream, data, size);
    if (done < size) leave(stream);
    return PyLong_FromSsize_t(done);
}

static PyObject *Stream_leave(Stream *stream, PyObject *nothing) {
    leave(stream);
    Py_RETURN_NONE;
}

static PyObject *kept_bytes(const Kept *kept) { return PyBytes_FromStringAndSize(kept->data, kept->size); }
static PyObject *Stream_newest(Stream *stream, void *unused) { return kept_bytes(&stream->newest); }
static PyObject *Stream_older(Stream *stream, void *unused) { return kept_bytes(&stream->older); }

static int Stream_init(Stream *stream, PyObject *args, PyObject *named);
static PyTypeObject StreamsType;

static int Stream_traverse(Stream *stream, visitproc visit, void *arg) {
    Py_VISIT(stream->streams);
    Py_VISIT(stream->owner);
    Py_VISIT(stream->gaps);
    return 0;
}

static int Stream_clear(Stream *stream) {
    Py_CLEAR(stream->owner);
    return 0;
}

static void Stream_dealloc(Stream *stream) {
    PyObject_GC_UnTrack(stream);
    drop(&stream->opening);
    drop(&stream->newest);
    drop(&stream->older);
    Py_CLEAR(stream->owner);
    Py_CLEAR(stream->gaps);
    Py_CLEAR(stream->streams);
    Py_TYPE(stream)->tp_free((PyObject *)stream);
}

static PyMethodDef stream_methods[] = {
    {"expect", (PyCFunction)Stream_expect, METH_VARARGS, NULL},
    {"begin", (PyCFunction)Stream_begin, METH_VARARGS, NULL},
    {"events_in", (PyCFunction)Stream_events_in, METH_O, NULL},
    {"count", (PyCFunction)Stream_count, METH_VARARGS, NULL},
    {"enter", (PyCFunction)Stream_enter, METH_VARARGS, NULL},
    {"leave", (PyCFunction)Stream_leave, METH_NOARGS, NULL},
    {NULL},
};

static PyMemberDef stream_members[] = {
    {"events", T_PYSSIZET, offsetof(Stream, events), READONLY, NULL},
    {"body_bytes", T_PYSSIZET, offsetof(Stream, body_bytes), READONLY, NULL},
    {"reads", T_PYSSIZET, offsetof(Stream, reads), READONLY, NULL},
    {"heard_s", T_DOUBLE, offsetof(Stream, heard_s), READONLY, NULL},
    {"last_s", T_DOUBLE, offsetof(Stream, last_s), READONLY, NULL},
    {"before_s", T_DOUBLE, offsetof(Stream, before_s), READONLY, NULL},
    {"gap_max_s", T_DOUBLE, offsetof(Stream, gap_max_s), READONLY, NULL},
    {NULL},
};

static PyGetSetDef stream_attributes[] = {
    {"newest", (getter)Stream_newest, NULL, NULL, NULL},
    {"older", (getter)Stream_older, NULL, NULL, NULL},
    {NULL},
};

static PyTypeObject StreamType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "_fast_path.Stream",
    .tp_basicsize = sizeof(Stream),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Stream_init,
    .tp_dealloc = (destructor)Stream_dealloc,
    .tp_traverse = (traverseproc)Stream_traverse,
    .tp_clear = (inquiry)Stream_clear,
    .tp_methods = stream_methods,
    .tp_members = stream_members,
    .tp_getset = stream_attributes,
};

/* Stream(streams, owner, gaps): *gaps*: a histogram's counts, one more than there are edges. */
static int Stream_init(Stream *stream, PyObject *args, PyObject *named) {
    PyObject *streams, *owner, *gaps;
    if (stream->streams != NULL) {
        PyErr_SetString(PyExc_TypeError, "a stream is made once");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "O!OO!:Stream", &StreamsType, &streams, &owner, &PyList_Type, &gaps)) return -1;
    stream->streams = (Streams *)Py_NewRef(streams);
    stream->owner = Py_NewRef(owner);
    stream->gaps = Py_NewRef(gaps);
    stream->source = stream->sink = -1;
    return 0;
}

/* -- all streams ----------------------------------------------------------------------------------------------------- */

/* One read of one stream. 0: all of it was passed on, 1: none of it was (*rest*; empty: the event loop is to read), 2: it
 * was counted, and *rest* of it was not sent, -1: no memory. */
static int pass_on(Streams *streams, Stream *stream, double now_s, const char **rest, Py_ssize_t *rest_size) {
    Py_ssize_t size;
    do size = recv(stream->source, streams->buffer, READ_BYTES, MSG_DONTWAIT);
    while (size < 0 && errno == EINTR);
    if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return 0;
    *rest = streams->buffer;
    *rest_size = size < 0 ? 0 : size;
    if (size <= 0) return 1;
    Py_ssize_t count = events_in(stream, streams->buffer, size);
    if (count <= 0) return 1;
    if (account(stream, streams->buffer, size, count, now_s) < 0) return -1;
    Py_ssize_t done = sent(stream, streams->buffer, size);
    if (done == size) return 0;
    *rest += done;
    *rest_size -= done;
    return 2;
}

/* pass_on(now_s): a list of (owner, data, counted) for the streams that have something else than plain tokens: *data* of
 * a read (empty: the connection is at its end) of which nothing was passed on, or, *counted*, its unsent rest. Those are
 * here no longer. */
static PyObject *Streams_pass_on(Streams *streams, PyObject *now) {
    double now_s = PyFloat_AsDouble(now);
    if (now_s == -1.0 && PyErr_Occurred()) return NULL;
    PyObject *others = PyList_New(0);
    if (others == NULL) return NULL;
    struct epoll_event ready[BATCH];
    int count = streams->epoll < 0 ? 0 : epoll_wait(streams->epoll, ready, BATCH, 0);
    /* An allocation may run a finalizer, which removes one: there is none before this */
    for (int i = 0; i < count; i++) Py_INCREF(ready[i].data.ptr);
    int failed = 0;
    for (int i = 0; i < count; i++) {
        Stream *stream = ready[i].data.ptr;
        if (stream->here && !failed) {
            const char *rest = NULL;
            Py_ssize_t rest_size = 0;
            /* An error is left for the event loop to read */
            int what = ready[i].events & EPOLLERR ? 1 : pass_on(streams, stream, now_s, &rest, &rest_size);
            if (what > 0) {
                PyObject *other = Py_BuildValue("(Oy#O)", stream->owner, rest ? rest : "", rest_size, what == 2 ? Py_True : Py_False);
                failed = other == NULL || PyList_Append(others, other) < 0;
                Py_XDECREF(other);
                leave(stream);
            } else if (what < 0) {
                failed = 1;
                leave(stream); /* nothing may follow what is lost */
                if (!PyErr_Occurred()) PyErr_NoMemory();
            }
        }
        Py_DECREF(stream);
    }
    if (failed) Py_CLEAR(others);
    return others;
}

/* open(): a descriptor that can be read while a stream can. -1: this process may have no more, and no stream enters. */
static PyObject *Streams_open(Streams *streams, PyObject *nothing) {
    if (streams->epoll < 0) streams->epoll = epoll_create1(EPOLL_CLOEXEC);
    return PyLong_FromLong(streams->epoll);
}

static PyObject *Streams_close(Streams *streams, PyObject *nothing) {
    while (streams->first != NULL) unlink_stream(streams->first);
    if (streams->epoll >= 0) close(streams->epoll);
    streams->epoll = -1;
    Py_RETURN_NONE;
}

/* Streams(edges): *edges* of the histograms of gaps between tokens, in seconds. */
static int Streams_init(Streams *streams, PyObject *args, PyObject *named) {
    PyObject *edges;
    if (streams->buffer != NULL) {
        PyErr_SetString(PyExc_TypeError, "a loop is made once");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "O!:Streams", &PyTuple_Type, &edges)) return -1;
    if (PyTuple_GET_SIZE(edges) > EDGES_MAX) {
        PyErr_SetString(PyExc_ValueError, "too many edges");
        return -1;
    }
    streams->count = (int)PyTuple_GET_SIZE(edges);
    for (int i = 0; i < streams->count; i++) streams->edges[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(edges, i));
    if (PyErr_Occurred()) return -1;
    streams->buffer = PyMem_Malloc(READ_BYTES);
    if (streams->buffer == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static PyObject *Streams_new(PyTypeObject *type, PyObject *args, PyObject *named) {
    Streams *made = (Streams *)type->tp_alloc(type, 0);
    if (made != NULL) made->epoll = -1;
    return (PyObject *)made;
}

static void Streams_dealloc(Streams *streams) {
    if (streams->epoll >= 0) close(streams->epoll); /* none is here: each would have kept it alive */
    PyMem_Free(streams->buffer);
    Py_TYPE(streams)->tp_free((PyObject *)streams);
}

static PyMethodDef streams_methods[] = {
    {"open", (PyCFunction)Streams_open, METH_NOARGS, NULL},
    {"pass_on", (PyCFunction)Streams_pass_on, METH_O, NULL},
    {"close", (PyCFunction)Streams_close, METH_NOARGS, NULL},
    {NULL},
};

static PyTypeObject StreamsType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "_fast_path.Streams",
    .tp_basicsize = sizeof(Streams),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = Streams_new,
    .tp_init = (initproc)Streams_init,
    .tp_dealloc = (destructor)Streams_dealloc,
    .tp_methods = streams_methods,
};

/* -- the module ------------------------------------------------------------------------------------------------------ */

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_fast_path", NULL, -1, NULL};

PyMODINIT_FUNC PyInit__fast_path(void) {
    if (PyType_Ready(&StreamsType) < 0 || PyType_Ready(&StreamType) < 0) return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL) return NULL;
    if (PyModule_AddObjectRef(module, "Streams", (PyObject *)&StreamsType) < 0 ||
        PyModule_AddObjectRef(module, "Stream", (PyObject *)&StreamType) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}

#else /* no epoll */

PyMODINIT_FUNC PyInit__fast_path(void) {
    PyErr_SetString(PyExc_ImportError, "there is no epoll here");
    return NULL;
}

#endif
