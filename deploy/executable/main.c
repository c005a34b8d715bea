/* A Python interpreter that knows one program and reads nothing from the disk.
 *
 * Source: CPython, "Python Initialization Configuration" (PEP 587) and Include/cpython/import.h.
 */
#include <Python.h>
#include <malloc.h>
#include <signal.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* linux/mman.h, Linux 5.14 */
#endif

extern char __data_start[], _end[]; /* of writable data, by the linker (end(3)) */

/* The interpreter writes to nearly every page of its data when it starts. Had one by one, each is a
 * fault, and all of them a tenth of the time that the executable runs. Older kernels refuse. */
static void prepare_memory(void)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = (uintptr_t)__data_start & ~(page - 1);
    madvise((void *)begin, (uintptr_t)_end - begin, MADV_POPULATE_WRITE);
    mallopt(M_TOP_PAD, 512 * 1024); /* bytes of heap to ask the kernel for at a time */
}

static void check(PyStatus status)
{
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
}

#if PY_VERSION_HEX >= 0x030D0000
/* Since 3.13 the registry of codecs, by which text that is no UTF-8 is refused, is not made when it
 * is first asked, but by the part of the initialisation that is left out here (Python/codecs.c). */
extern PyStatus _PyCodec_InitRegistry(PyInterpreterState *);
#endif

static void configure(void)
{
    PyPreConfig before;
    PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1; /* whatever locale the runtime has, or has not, set */
    check(Py_PreInitialize(&before));

    PyConfig config;
    PyConfig_InitIsolatedConfig(&config); /* no PYTHON* variables, no user site, no arguments */
    config.site_import = 0;
    config._init_main = 0; /* no codecs, streams and warnings, which no line of ours uses (PEP 587) */
    config.module_search_paths_set = 1; /* to nothing: only frozen and built-in modules exist */
    config.pathconfig_warnings = 0;
    config.optimization_level = 2;
    config.use_hash_seed = 1; /* one process, one input: there is nobody to collide with twice */
    config.hash_seed = 0;
    /* Whatever is not set here, or is set to nothing, CPython goes looking for (Modules/getpath.py):
     * by PATH for an executable, beside that or in the working directory for pyvenv.cfg and ._pth,
     * and upwards for a standard library, from which packages would be completed. With a home and
     * an executable it does not. These can be nobody's: below a file that is no directory. */
    check(PyConfig_SetString(&config, &config.home, L"/dev/null"));
    check(PyConfig_SetString(&config, &config.executable, L"/dev/null/node-network-cni"));
    check(Py_InitializeFromConfig(&config));
    PyConfig_Clear(&config);
#if PY_VERSION_HEX >= 0x030D0000
    check(_PyCodec_InitRegistry(PyInterpreterState_Get()));
#endif
}

int main(void)
{
    prepare_memory();
    /* A peer or a runtime that is gone is an error to be told, not the end: what was recorded has
     * to be taken back. An isolated interpreter leaves signals alone. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file that RLIMIT_FSIZE refuses is an error like any other */
    configure();
    PyGC_Disable(); /* it ends before what it leaves could matter */
    PyObject *module = PyImport_ImportModule("cni.__main__");
    PyObject *status = module ? PyObject_CallMethod(module, "main", NULL) : NULL;
    if (status == NULL) {
        PyErr_Print();
        return 1;
    }
    int code = (int)PyLong_AsLong(status);
    /* Taking the interpreter down in order would take a fifth of the time it has run. */
    _exit(code);
}
