/* Collecting pages into runs, which merge/merge.c carries out. */
#ifndef KSMPY_SCAN_COLLECT_H
#define KSMPY_SCAN_COLLECT_H

#include "scan/scanner.h"

/*
 * Carries out the run that is being collected, and brings the window up to date. false: there was
 * no run, or it is only planned.  If somebody waits a part of it is left, and scanner->unfinished
 * is true: then the slice ends, and nothing is collected before it is carried out to its end.
 */
bool carry_out(struct scanner *scanner);
/* Carries it out, and begins another run with this page; false: there is a part left, and it does not. */
bool collect_first(struct scanner *scanner, int kind, uint32_t id, uint32_t target);
/* Adds this page to the run, or else begins another run with it. */
bool collect(struct scanner *scanner, int kind, uint32_t id, uint32_t target);
/* At the start of a slice: goes on with a run that is left, as far as others allow. */
void take_run_up(struct scanner *scanner);
/* Leaves the run's pages for the next pass. */
void leave_run(struct scanner *scanner);
/* A region is about to go. */
void leave_run_in(struct scanner *scanner, uint32_t region);

#endif
