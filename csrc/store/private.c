#include "store/private.h"

#include <errno.h>
#include <string.h>

#include "base/pages.h"
#include "os/arena.h"
#include "os/files.h"
#include "os/folios.h"
#include "os/map.h"
#include "store/files.h"
#include "store/layout.h"
#include "store/rules.h"
#include "store/stable.h"
#include "store/store.h"
#include "store/view.h"

static int open_files(struct store *store)
{
    store->write_fd = os_memfd("ksmpy", bytes_of(frame_limit(store)));
    if (store->write_fd < 0)
        return store->write_fd;
    store->lock_fd = os_memfd("ksmpy-lease", PAGE_SIZE);
    if (store->lock_fd < 0)
        return store->lock_fd;
    store->memory = os_map_hidden(store->write_fd, 0, bytes_of(frame_limit(store)));
    if (!store->memory || store_begin_to_show(store) < 0)
        return -ENOMEM;
    store->large_folios = os_file_gets_large_folios(store->write_fd);
    store->memfd = os_seal(store->write_fd);
    return store->memfd < 0 ? store->memfd : store_know_files(store);
}

static int open_records(struct store *store)
{
    uint64_t span = (uint64_t)1 << store->span_shift;
    store->frames = os_reserve(sizeof(struct frame) * frame_limit(store));
    os_dont_dump(store->frames, sizeof(struct frame) * frame_limit(store)); /* as an arena's */
    store->head = os_alloc(sizeof *store->head);
    if (!store->frames || !store->head)
        return -ENOMEM;
    store_default_rules(store->head->knobs);
    store_new_key(store);
    int error = arena_init(&store->dead, sizeof(uint32_t), frame_limit(store));
    for (int node = 0; node < store->nodes && !error; node++) {
        store->records[node] =
            (struct arena){.base = (uint8_t *)(store->frames + first_frame(store, node)),
                           .stride = sizeof(struct frame),
                           .limit = span};
        error = ids_init(&store->ids[node], span, &store->head->node[node].ids);
        store->ids[node].records = &store->records[node];
        if (!error)
            error = forest_init(&store->stable[node], frame_limit(store),
                                &store->head->node[node].stable);
    }
    return error;
}

void private_close(struct store *store)
{
    os_unmap((void *)(uintptr_t)store->memory, bytes_of(frame_limit(store)));
    os_unmap(store->frames, sizeof(struct frame) * frame_limit(store));
    for (int node = 0; node < store->nodes; node++) {
        ids_destroy(&store->ids[node]);
        arena_destroy(&store->stable[node].roots);
    }
    arena_destroy(&store->dead);
    os_unmap(store->head, sizeof *store->head);
    store_close_files(store);
    store->memory = NULL;
    store->frames = NULL;
    store->head = NULL;
}

int store_init(struct store *store, int nodes, const int *node_ids)
{
    memset(store, 0, sizeof *store);
    store_forget_files(store);
    store->slot = NO_SLOT;
    store->nodes = nodes;
    store->span_shift = store_choose_span(nodes);
    int error = open_files(store);
    if (!error)
        error = open_records(store);
    if (error)
        private_close(store);
    else
        store_place(store, node_ids);
    return error;
}
