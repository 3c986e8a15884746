/*
 * A store without engines, which two attach to in one process.  To die is to lose one's lease, as
 * the kernel takes it from whoever ends.
 */
#ifndef KSMPY_TESTS_PAIR_H
#define KSMPY_TESTS_PAIR_H

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "base/checksum.h"
#include "base/pages.h"
#include "check.h"
#include "os/files.h"
#include "os/lease.h"
#include "store/attach.h"
#include "store/check.h"
#include "store/extents.h"
#include "store/files.h"
#include "store/frames.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/mapping.h"
#include "store/reap.h"
#include "store/sharers.h"
#include "store/store.h"

static int file;
static struct store one, two;

static inline bool attach(struct store *store)
{
    return store_attach(store, file, 1, NULL) == 0;
}

static inline bool open_file(void)
{
    file = os_memfd("ksmpy-store", 0);
    return file >= 0;
}

static inline bool open_pair(void)
{
    return open_file() && attach(&one) && attach(&two);
}

/*
 * As open_pair(), on a tmpfs of its own, which filler fills, a file beside the store.  false: it cannot
 * be mounted here.
 */
static inline bool open_mounted_pair(const char *options, int *filler)
{
    char place[] = "/tmp/ksmpy-small-XXXXXX";
    if (!mkdtemp(place))
        return false;
    bool mounted = mount("tmpfs", place, "tmpfs", 0, options) == 0;
    if (mounted) {
        file = open(place, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        *filler = open(place, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        umount2(place, MNT_DETACH); /* it is there for as long as a file of it is open */
    }
    rmdir(place);
    return mounted && file >= 0 && *filler >= 0 && attach(&one) && attach(&two);
}

static inline void close_all(void)
{
    CHECK(store_lock(&two) && store_check(&two) == 0);
    store_unlock(&two);
    store_detach(&two);
    close(file);
}

/* Its descriptors stay, as nobody asks for them. */
static inline void die(struct store *store)
{
    os_lease_drop(store->lease);
}

static inline void *die_with_the_lock(void *store)
{
    CHECK(store_lock(store));
    ((struct store *)store)->head->live_frames = 4711;
    ((struct store *)store)->head->stale_frames = 4712;
    return NULL;
}

static inline void die_in_lock(struct store *store)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, die_with_the_lock, store) == 0);
    pthread_join(thread, NULL);
    die(store);
}

static inline void tidy(struct store *dead)
{
    store_unmap(dead);
    store_close_files(dead);
}

/* Who has a dead one's slot next has nothing on a frame that `two` has once. */
static inline void next_in_slot_counts_nothing(unsigned slot, uint32_t frame)
{
    REQUIRE(attach(&one));
    CHECK(one.slot == slot);
    die(&one);
    slots_reap(&two);
    CHECK(frame_at(&two, frame)->sharers == 1);
    tidy(&one);
}

/* A frame that is filled with such bytes, and nobody shares. */
static inline uint32_t filled_frame(struct store *store, uint8_t byte)
{
    static uint8_t page[1 << PAGE_SHIFT];
    uint64_t n = 1;
    uint32_t frame = store_take(store, 0, &n);
    memset(page, byte, sizeof page);
    CHECK(frame != NO_FRAME && store_fill(store, frame, page, 1) == 1);
    return frame;
}

/* A filled one is live from then on, with one sharer. */
static inline void publish(struct store *store, uint32_t frame)
{
    CHECK(store_join(store, frame, 1) == 1);
    frame_at(store, frame)->sum = cut_sum(checksum_of(frame_bytes(store, frame), PAGE_SIZE));
    CHECK(store_lock(store));
    store_publish(store, frame, 0);
    store_unlock(store);
}

static inline uint32_t shared_frame(struct store *store, uint8_t byte)
{
    uint32_t frame = filled_frame(store, byte);
    publish(store, frame);
    return frame;
}

static inline int state_of(const struct store *store, uint32_t frame)
{
    return frame_at(store, frame)->state;
}

#endif
