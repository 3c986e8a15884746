/* Collecting pages into runs, which merge/merge.c carries out. */
#ifndef KSMPY_SCAN_COLLECT_H
#define KSMPY_SCAN_COLLECT_H

#include "scan/scanner.h"

/*
 * The run at hand; it is empty then, and the window is brought up to date. false: there was none, or
 * it is only planned.
 */
bool carry_out(struct scanner *scanner);
/* It is carried out, and another one begins. */
void collect_first(struct scanner *scanner, int kind, uint32_t id, uint32_t target);
/* It gets longer, or another one begins. */
void collect(struct scanner *scanner, int kind, uint32_t id, uint32_t target);

#endif
