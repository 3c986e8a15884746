/*
 * Signal handlers: the engine's, and the program's behind it.
 *
 * The engine's has to be the one that the kernel calls.  What is not the
 * engine's goes to the handler that was there before, which is called as the
 * kernel would have called it, as often as it comes: with its mask, on the
 * stack it asked for, once if it asked for that (SA_RESETHAND).  It may leave
 * by siglongjmp, so nothing here waits for it to come back.
 *
 * A handler that the program installs later may keep the engine's and hand on
 * to it, or put it back.  So each handler that was found has a function of its
 * own before it, for ever, and no chain can come back to itself.
 */
#ifndef KSMPY_HANDLERS_H
#define KSMPY_HANDLERS_H

/*
 * From now on SIGSEGV and SIGBUS come to the engine first; to be called again before each time that
 * it has to be so, as the program may have installed a handler since.  EBUSY: it has had too many.
 */
int handlers_install(void);

#endif
