#include "store/layout.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "base/checksum.h"
#include "base/pages.h"
#include "base/rbtree.h"
#include "os/arena.h"
#include "os/files.h"
#include "os/memory.h"

#define VERSION 7 /* of the file's layout: a store of another version is refused */

/* ---- layout ---- */

static uint64_t up(uint64_t bytes, uint64_t step)
{
    return (bytes + step - 1) / step * step;
}

struct store_layout store_layout_of(unsigned nodes, unsigned span_shift)
{
    struct store_layout at = {.span = (uint64_t)1 << span_shift};
    uint64_t frames = nodes * at.span;
    /* The largest table has 4 entries a frame, and so lies in the entries 4 to 8: see board.c. */
    at.announced_size = 8 * frames;
    at.ids = up(sizeof(struct store_head), PAGE_SIZE);
    at.ids_stride = up(ids_words(at.span) * sizeof(uint64_t), PAGE_SIZE);
    at.trees = at.ids + nodes * at.ids_stride;
    at.trees_stride = up(frames * sizeof(struct rb_tree), PAGE_SIZE);
    at.records = at.trees + nodes * at.trees_stride;
    at.announcements = up(at.records + frames * sizeof(struct frame), PAGE_SIZE);
    at.events = at.announcements + at.announced_size * sizeof(uint64_t);
    at.counts = at.events + STORE_EVENTS * sizeof(uint64_t);
    at.frames = up(at.counts + MAX_SLOTS * frames * sizeof(uint32_t), bytes_of(HUGE_PAGES));
    at.end = at.frames + bytes_of(frames);
    return at;
}

/*
 * log2 of the fewest and most frames of a node: 256 MiB and 4 TiB of pages.  The indices of all
 * nodes together have 31 bits in the trees, so more nodes have fewer frames each.
 */
#define MIN_SPAN_SHIFT 16
#define MAX_SPAN_SHIFT 30

unsigned store_choose_span(int nodes)
{
    unsigned shift = MIN_SPAN_SHIFT, node_bits = 0;
    while ((1 << node_bits) < nodes)
        node_bits++;
    while (shift < MAX_SPAN_SHIFT - node_bits && ((uint64_t)1 << shift) < os_memory_pages())
        shift++;
    return shift;
}

/* ---- shape ---- */

static uint64_t sum_of_shape(const struct store_shape *shape)
{
    uint8_t bytes[64] = {0};
    _Static_assert(offsetof(struct store_shape, sum) <= sizeof bytes, "it fits");
    memcpy(bytes, shape, offsetof(struct store_shape, sum));
    return checksum_of(bytes, sizeof bytes);
}

/*
 * Tells which checksum this build uses, by the checksum of a page whose bytes differ so much that
 * another function hardly gives the same.
 */
static uint64_t which_checksum(void)
{
    uint8_t page[PAGE_SIZE];
    for (size_t i = 0; i < PAGE_SIZE; i++)
        page[i] = (uint8_t)(i * 167 + (i >> 8));
    return checksum_of(page, PAGE_SIZE);
}

/* A robust mutex of several processes: the next to take it learns that its holder has died. */
int store_make_mutex(pthread_mutex_t *mutex)
{
    pthread_mutexattr_t how;
    pthread_mutexattr_init(&how);
    pthread_mutexattr_setpshared(&how, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&how, PTHREAD_MUTEX_ROBUST);
    int error = -pthread_mutex_init(mutex, &how);
    pthread_mutexattr_destroy(&how);
    return error;
}

/*
 * Tells which C library this is, by the bytes of a new mutex: each has the mutex's kind at a place,
 * and as a number, of its own.  Two libraries on one store would each take the lock in their own
 * way, and both would have it.
 */
static uint64_t which_mutex(void)
{
    union {
        pthread_mutex_t mutex;
        uint8_t bytes[64];
    } made = {.bytes = {0}};
    _Static_assert(sizeof(pthread_mutex_t) < sizeof made.bytes, "it fits");
    made.bytes[sizeof made.bytes - 1] = sizeof(pthread_mutex_t);
    if (store_make_mutex(&made.mutex) < 0)
        return 0;
    uint64_t sum = checksum_of(made.bytes, sizeof made.bytes);
    pthread_mutex_destroy(&made.mutex);
    return sum;
}

struct store_shape store_shape_for(int nodes)
{
    struct store_shape shape = {.magic = STORE_MAGIC,
                                .version = VERSION,
                                .page_size = PAGE_SIZE,
                                .checksum = which_checksum(),
                                .mutex = which_mutex(),
                                .nodes = (uint32_t)nodes,
                                .span_shift = store_choose_span(nodes),
                                .slots = MAX_SLOTS,
                                .record_size = sizeof(struct frame)};
    shape.file_size = store_layout_of(shape.nodes, shape.span_shift).end;
    shape.sum = sum_of_shape(&shape);
    return shape;
}

/* Files of another kind may begin with zeros. They are not to be laid out. */
static bool is_size_of_store(int64_t size)
{
    for (int nodes = 1; nodes <= MAX_NODES; nodes++)
        if (size == (int64_t)store_shape_for(nodes).file_size)
            return true;
    return false;
}

int store_read_shape(int fd, struct store_shape *shape)
{
    int64_t size = os_file_size(fd);
    memset(shape, 0, sizeof *shape);
    if (size == 0)
        return -ENODATA;
    if (size < 0 || os_pread(fd, 0, &shape->magic, sizeof shape->magic) < 0)
        return -EPROTO;
    if (shape->magic == STORE_RETIRED)
        return -ESTALE;
    if (os_pread(fd, 0, shape, sizeof *shape) < 0)
        return -EPROTO;
    if (shape->magic == 0 && is_size_of_store(size))
        return -ENODATA; /* its maker died before it had finished: see write_shape() */
    if (shape->magic != STORE_MAGIC)
        return -EPROTO;
    if (shape->sum != sum_of_shape(shape))
        return -EUCLEAN;
    struct store_shape ours = store_shape_for((int)shape->nodes);
    if (shape->version != VERSION || shape->page_size != PAGE_SIZE || shape->slots != MAX_SLOTS ||
        shape->checksum != ours.checksum || shape->record_size != ours.record_size ||
        shape->mutex != ours.mutex)
        return -EPROTO;
    if (shape->nodes < 1 || shape->nodes > MAX_NODES || shape->span_shift > 30 ||
        shape->file_size != store_layout_of(shape->nodes, shape->span_shift).end)
        return -EPROTO;
    return size == (int64_t)shape->file_size ? 0 : -EUCLEAN;
}
