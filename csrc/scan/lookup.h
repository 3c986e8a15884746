/* Looking a page up: who has its bytes? */
#ifndef KSMPY_SCAN_LOOKUP_H
#define KSMPY_SCAN_LOOKUP_H

#include "scan/scanner.h"

/* `changed` says that its checksum is not that of the last visit, or that there was no visit. */
void look_up(struct scanner *scanner, uint32_t id, bool changed, bool eager);

#endif
