/*
 * fork(), held off while something is made that a child must not inherit half done, and those who
 * are to be called around it.
 */
#ifndef KSMPY_OS_FORKS_H
#define KSMPY_OS_FORKS_H

#include <stdint.h>

/* What is called around each fork, while nobody holds forks off. */
struct fork_calls {
    void (*before)(void);
    void (*in_parent)(void);
    void (*in_child)(void);
};

/* For ever; there is one such caller. 0, or a negative errno: there is no memory to note it. */
int forks_call(const struct fork_calls *calls);
/* No fork happens in between. Taken before any lock that is taken around a fork. */
void fork_hold(void);
void fork_let_go(void);
/* Equal in processes of which one comes from the other by forks alone, or both from a third. */
uint64_t os_kin(void);
/* Tells the pid namespace of this process from others that there are; 0 where /proc does not say. */
uint64_t os_pid_namespace(void);

#endif
