/* Frames whose overlays went out of sight. */
#ifndef KSMPY_PAGES_PINS_H
#define KSMPY_PAGES_PINS_H

#include "pages/pages.h"

void pins_add(struct pages *pages, uint32_t frame);
/* Those that nothing in this process maps any more are kept no longer. */
void pins_check(struct pages *pages);
/* In a child that has a slot of its own now: they are its own as well. */
void pins_inherit(struct pages *pages);
void pins_forget(struct pages *pages); /* there are none any more */

#endif
