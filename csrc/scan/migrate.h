/* Frames follow their memory from node to node. */
#ifndef KSMPY_SCAN_MIGRATE_H
#define KSMPY_SCAN_MIGRATE_H

#include "pages/pages.h"

/* A frame whose memory lies on another node now goes to that node's tree, as in the kernel. */
void frames_follow_nodes(struct pages *pages);

#endif
