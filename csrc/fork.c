/*
 * fork().  Before it, every engine is brought to rest: nothing frozen, no half
 * change, and a lease that tells how long the child may map our frames.  In the
 * child the memory stays as it is (overlays are copy-on-write for it as well),
 * but the engine is only a shell: its threads are gone, its descriptors act on
 * the parent.  It can still give memory back, with a freezer of its own.
 */
#include "engine.h"

#include <errno.h>

static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static ksmpy_engine *all;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int atfork_error;

static void prepare(void)
{
    pthread_mutex_lock(&all_lock);
    for (ksmpy_engine *engine = all; engine; engine = engine->next) {
        engine_lock(engine);
        pthread_mutex_lock(&engine->fz.lock);
        if (!engine->forked)
            store_lease_prepare(&engine->store);
    }
}

static void in_parent(void)
{
    for (ksmpy_engine *engine = all; engine; engine = engine->next) {
        store_lease_parent(&engine->store);
        pthread_mutex_unlock(&engine->fz.lock);
        engine_unlock(engine);
    }
    pthread_mutex_unlock(&all_lock);
}

/* The store's writable mapping was not inherited; its address may be another's by now. */
static void let_go(ksmpy_engine *engine)
{
    freezer_abandon(&engine->fz);
    os_maps_close(&engine->maps);
    store_close_files(&engine->store);
    engine->store.memory = NULL;
    engine->store.leases.taking = NULL; /* stays mapped: it is this child's lease */
    engine->forked = true;
    engine->run = (struct run){.kind = RUN_NONE};
    atomic_store(&engine->waiting, 0);
    atomic_store(&engine->pass_wanted, 0);
    pthread_mutex_init(&engine->lock, NULL);
    pthread_mutex_init(&engine->pass, NULL);
}

static void in_child(void)
{
    for (ksmpy_engine *engine = all; engine; engine = engine->next)
        let_go(engine);
    pthread_mutex_init(&all_lock, NULL);
}

static void set_up(void)
{
    atfork_error = -pthread_atfork(prepare, in_parent, in_child);
}

int fork_watch(ksmpy_engine *engine)
{
    pthread_once(&once, set_up);
    if (atfork_error)
        return atfork_error;
    pthread_mutex_lock(&all_lock);
    engine->next = all;
    all = engine;
    pthread_mutex_unlock(&all_lock);
    return 0;
}

void fork_unwatch(ksmpy_engine *engine)
{
    pthread_mutex_lock(&all_lock);
    ksmpy_engine **link = &all;
    while (*link && *link != engine)
        link = &(*link)->next;
    if (*link)
        *link = engine->next;
    pthread_mutex_unlock(&all_lock);
}

int fork_revive(ksmpy_engine *engine)
{
    if (!engine->forked || engine->fz.pagemap_fd >= 0)
        return 0;
    int error = os_maps_open(&engine->maps);
    if (error)
        return error;
    error = freezer_init(&engine->fz, engine->fz.mode, false);
    if (error)
        os_maps_close(&engine->maps);
    return error;
}
