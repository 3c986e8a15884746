/*
 * The engine: what its callers hold.  It is made of one structure for each floor of the house;
 * what each of them means is said in its header.
 *
 * Where this differs from the kernel's ksmd:
 *   - A page enters the unstable tree only once a second page with its checksum
 *     exists; a page alone waits in a bucket, which costs one cache miss
 *     instead of a descent.  The tree is ordered by checksum and page, not by
 *     bytes that may change, so it need not be thrown away every pass.
 *   - Pages are merged by runs of neighbours, which cost one mapping together.
 *   - With write tracking a page that was not written is not read again.
 *
 * Locks, in the order they are taken:
 *   pass        one pass, unmerge or switch of a knob at a time; may be held for long
 *   arrivals    one registration at a time; may be held for long
 *   refreshing  one look at what was written, for stats(), at a time; may be held for long
 *   os/forks.h  held during a fork, while an engine is made or closed, and a store looked into from outside;
 *               never asked for by who has pass or arrivals
 *   lock        all of the structures below; held for a slice of whatever is done (SLICE_NS and the
 *               step under way; a pass has longer ones where nobody waits), so that a fork or a
 *               dying owner need not wait.  Where system calls would fail a step may wait for the
 *               interpreter's lock, but keeps no fork waiting for that
 *   the freezer's own, while pages are frozen
 *   a shared store's, for microseconds: never while anything is frozen.  Another process may be
 *               stopped with it, so that it is tried for, and not waited for, by who has the others
 * fork() takes the last three, a store's excepted, so it never sees a frozen page or half a change.
 */
#ifndef KSMPY_ENGINE_ENGINE_H
#define KSMPY_ENGINE_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>

#include "merge/merger.h"
#include "pages/pages.h"
#include "scan/scanner.h"

struct ksmpy_engine {
    pthread_mutex_t pass, arrivals, refreshing, lock;
    _Atomic bool interrupted;
    _Atomic int pass_wanted; /* threads that wait for the pass lock */
    _Atomic int waiting; /* threads that want lock more urgently than a pass does */
    _Atomic int urgent; /* those of them that do not merely go on with something long */
    _Atomic bool pass_waits; /* a pass wants it */
    ksmpy_engine *next; /* all engines, for fork */
    struct pages pages;
    struct merger merger;
    struct scanner scanner;
};

#endif
