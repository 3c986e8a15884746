/* Which of the mappings in /proc/self/maps show the store. */
#ifndef KSMPY_PAGES_OVERLAY_H
#define KSMPY_PAGES_OVERLAY_H

#include "os/proc_maps.h"
#include "pages/pages.h"

static inline bool shows_store(const struct pages *pages, const struct os_vma *vma)
{
    return os_vma_shows(vma, pages->store.inode, pages->store.dev);
}
/* Does this mapping show the store, and has its owner not protected it? */
static inline bool is_overlay(const struct pages *pages, const struct os_vma *vma)
{
    return vma->private_rw && shows_store(pages, vma);
}

#endif
