/* The native interface of ksmpy for C; cffi reads the declarations themselves. */
#ifndef KSMPY_H
#define KSMPY_H

#include <stddef.h>
#include <stdint.h>

#include "ksmpy.cdef.h"

#endif
