/*
 * A server with an interpreter in it, which forks its workers as uWSGI does: the interpreter is not
 * told, and has let go of its lock.  usage: embedded FIRST THEN N: runs FIRST, and THEN in each of N
 * workers, once a hook was called that the module uwsgi may have.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static struct PyModuleDef uwsgi = {PyModuleDef_HEAD_INIT, .m_name = "uwsgi", .m_size = -1};

static PyObject *make_uwsgi(void)
{
    return PyModule_Create(&uwsgi);
}

int main(int argc, char **argv)
{
    if (argc != 4 || PyImport_AppendInittab("uwsgi", make_uwsgi))
        return 2;
    Py_Initialize();
    if (PyRun_SimpleString(argv[1]))
        return 1;
    int workers = atoi(argv[3]);
    PyThreadState *state = PyEval_SaveThread();
    for (int i = 0; i < workers; i++)
        if (fork() == 0) {
            PyEval_RestoreThread(state);
            int failed = PyRun_SimpleString(
                "import uwsgi; getattr(uwsgi, 'post_fork_hook', lambda: None)()");
            _exit(failed || PyRun_SimpleString(argv[2]) ? 1 : 0);
        }
    int failed = 0;
    for (int status; wait(&status) > 0;)
        failed |= status != 0;
    PyEval_RestoreThread(state);
    Py_Finalize();
    return failed;
}
