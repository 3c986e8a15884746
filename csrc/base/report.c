#include "base/report.h"

#include <errno.h>
#include <stdio.h>

void complain(struct report *report, const char *what, uint64_t is, uint64_t should_be)
{
    if (report->error)
        return;
    report->error = -EUCLEAN;
    if (report->text)
        snprintf(report->text, report->size, "%s: %llu, should be %llu", what,
                 (unsigned long long)is, (unsigned long long)should_be);
}

void expect(struct report *report, const char *what, uint64_t is, uint64_t should_be)
{
    if (is != should_be)
        complain(report, what, is, should_be);
}
