/* What an engine hears from those of other processes that share its store. */
#ifndef KSMPY_PAGES_PEERS_H
#define KSMPY_PAGES_PEERS_H

#include "pages/pages.h"

/* At the start of a slice: the store's rules may have been changed. false: it is locked. */
bool follow_rules(struct pages *pages);
/*
 * At the start of a pass: pages that wait, and of which others have made frames, are looked up.
 * false: a slice is over, or the store is locked; there is more to hear.
 */
bool follow_events(struct pages *pages);

#endif
