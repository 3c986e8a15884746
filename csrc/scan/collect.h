/* Collecting pages into runs, which merge/merge.c carries out. */
#ifndef KSMPY_SCAN_COLLECT_H
#define KSMPY_SCAN_COLLECT_H

#include "scan/scanner.h"

/*
 * Carries out the run that is being collected, empties it, and brings the window up to date. false:
 * there was no run, or it is only planned.
 */
bool carry_out(struct scanner *scanner);
/* Carries it out, and begins another run with this page. */
void collect_first(struct scanner *scanner, int kind, uint32_t id, uint32_t target);
/* Adds this page to the run, or else begins another run with it. */
void collect(struct scanner *scanner, int kind, uint32_t id, uint32_t target);

#endif
