#include "freeze/removal_state.h"

#include <pthread.h>
#include <stddef.h>

#include "os/arena.h"
#include "os/proc_maps.h"

void removals_forget(struct removals *removals)
{
    *removals = (struct removals){.overlay_fd = -1, .gate_fd = -1, .stop_fd = -1, .tasks_fd = -1};
    removals->maps.fd = -1;
    pthread_mutex_init(&removals->quiet, NULL);
}

void removals_close(struct removals *removals)
{
    os_maps_close(&removals->maps);
    arena_destroy(&removals->seen);
    arena_destroy(&removals->prepared);
    pthread_mutex_destroy(&removals->quiet);
}
