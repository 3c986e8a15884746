/* What forbids merging for a slice of a pass, and that written pages come back. */
#include "merge/bar.h"

#include "base/pages.h"
#include "freeze/descriptors.h"
#include "freeze/freezer.h"
#include "merge/merger.h"
#include "os/clock.h"
#include "os/devices.h"
#include "os/map.h"
#include "store/files.h"

/*
 * What is asked takes longer with each descriptor and each mapping that the program has.  So it is asked
 * again when this many times as long has passed, and after so many ns at the latest.
 */
#define PATIENCE 32
#define FILES_NS 10000000
#define RINGS_NS 200000000

bool merger_has_files(const struct merger *merger)
{
    return store_has_files(&merger->pages->store) && freezer_has_files(&merger->fz);
}

static bool ask(struct question *question, bool (*ask_kernel)(void), uint64_t longest_ns)
{
    uint64_t begin = os_now_ns();
    if (begin >= question->again_ns) {
        question->answer = ask_kernel();
        uint64_t end = os_now_ns();
        question->again_ns = end + least((end - begin) * PATIENCE, longest_ns);
    }
    return question->answer;
}

/* May a device write into pages without our knowledge? */
static bool devices_may_write(struct merger *merger)
{
    struct bar *bar = &merger->bar;
    return bar->minds_devices && (ask(&bar->device_files, os_has_device_files, FILES_NS) ||
                                  ask(&bar->mapped_rings, os_has_mapped_rings, RINGS_NS));
}

void bar_ask_again(struct merger *merger)
{
    merger->bar.known = false;
}

/*
 * Only uffd-move can refuse just the pages that a device has pinned; in the other ways of freezing
 * nothing at all is merged where there may be such.
 */
static bool devices_bar_merging(struct merger *merger)
{
    return !merger->fz.ops->refuses_pinned && devices_may_write(merger);
}

/*
 * Nothing is merged after mlockall(MCL_FUTURE), since a new overlay would be filled at once with
 * copies of its frames.  Nor is it when the program has closed descriptors of the engine's, which
 * would then write into files that the program has opened under their numbers.
 */
bool merging_is_barred(struct merger *merger)
{
    if (!merger->bar.known)
        merger->bar.barred =
            os_locks_new_memory() || !merger_has_files(merger) || devices_bar_merging(merger);
    merger->bar.known = true;
    return merger->bar.barred;
}

/*
 * A page that a device has pinned, and that was merged before, is its owner's own copy by then.  It
 * lies in an overlay, out of which a page comes as another copy, whatever the way of freezing: the
 * device would go on with the one that nobody sees any more.
 */
bool coming_back_is_barred(struct merger *merger)
{
    return devices_may_write(merger);
}
