/*
 * A program that starts the interpreter again and again.  usage: anew CODE N: runs CODE in each of N
 * interpreters, one after the other.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    for (int i = 0; i < atoi(argv[2]); i++) {
        Py_Initialize();
        if (PyRun_SimpleString(argv[1]) || Py_FinalizeEx())
            return 1;
    }
    return 0;
}
