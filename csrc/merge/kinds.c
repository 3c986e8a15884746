/* What kind of memory lies behind pages. */
#include "merge/kinds.h"

#include "merge/merger.h"
#include "os/pagemap.h"
#include "pages/pages.h"

int page_kinds(const struct merger *merger, uint32_t id, uint64_t n, uint8_t *kinds)
{
    int pagemap_fd = merger->fz.pagemap_fd;
    int error = os_pages(pagemap_fd, page_address(merger->pages, id), n, kinds);
    for (uint64_t i = 0; i < n && !error; i++) {
        enum page_state state = page_state(page_record(merger->pages, id + (uint32_t)i));
        if (kinds[i] == OS_PAGE_UNTOLD && state != PAGE_SHARED && state != PAGE_ZERO)
            kinds[i] = OS_PAGE_ANON;
    }
    return error ? error : os_tell_pages(pagemap_fd, page_address(merger->pages, id), n, kinds);
}
