/* Frames whose overlays went out of sight. */
#ifndef KSMPY_PAGES_PINS_H
#define KSMPY_PAGES_PINS_H

#include "pages/pages.h"

void pins_add(struct pages *pages, uint32_t frame);
/* Lets those go that nothing in this process maps any more. */
void pins_check(struct pages *pages);
/* In a child that has a slot of its own now, they are pinned by that slot as well. */
void pins_inherit(struct pages *pages);
/* Forgets them all; the store is left as it is. */
void pins_forget(struct pages *pages);

#endif
