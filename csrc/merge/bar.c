/* What forbids merging for a slice of a pass. */
#include "merge/bar.h"

#include "freeze/descriptors.h"
#include "freeze/freezer.h"
#include "merge/merger.h"
#include "os/clock.h"
#include "os/devices.h"
#include "os/map.h"
#include "store/files.h"

#define DEVICES_NS 10000000 /* ns between two questions, as one takes 2.7 us a descriptor */

bool merger_has_files(const struct merger *merger)
{
    return store_has_files(&merger->pages->store) && freezer_has_files(&merger->fz);
}

/*
 * May a device write into pages without our knowledge?  Only uffd-move can refuse just the pages
 * that a device has pinned; in the other ways of freezing nothing at all is merged then.
 */
static bool devices_may_write(struct merger *merger)
{
    uint64_t now = os_now_ns();
    if (merger->bar.minds_devices && now - merger->bar.devices_asked_ns >= DEVICES_NS) {
        merger->bar.devices = os_has_devices();
        merger->bar.devices_asked_ns = now;
    }
    return merger->bar.devices;
}

void bar_ask_again(struct merger *merger)
{
    merger->bar.known = false;
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
            os_locks_new_memory() || !merger_has_files(merger) || devices_may_write(merger);
    merger->bar.known = true;
    return merger->bar.barred;
}
