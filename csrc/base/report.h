/*
 * What a check has found: the first thing that does not fit.
 */
#ifndef KSMPY_BASE_REPORT_H
#define KSMPY_BASE_REPORT_H

#include <stddef.h>
#include <stdint.h>

struct report {
    char *text; /* room for what it says, or NULL */
    size_t size;
    int error; /* -EUCLEAN once something did not fit */
};

void complain(struct report *report, const char *what, uint64_t is, uint64_t should_be);
void expect(struct report *report, const char *what, uint64_t is, uint64_t should_be);

#endif
