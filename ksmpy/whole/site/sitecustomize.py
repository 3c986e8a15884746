"""Brings ksmpy into every interpreter below `ksmpy run`, which puts this folder into PYTHONPATH.

It hands on to the program's own sitecustomize, and lets a thread wait for memory that is worth an
engine. Nothing of ksmpy is imported before that, so that a process that is small or soon over pays
next to nothing; forked children wait anew. Interpreters that ksmpy does not support come here too,
so this file is written for old ones.
"""

import os
import sys
from _io import FileIO as _File

# As it is now: the program's tests may let something else stand in for it, and count its calls.
_getpid = os.getpid
# The thread looks for the first time after so many seconds: a shorter process pays only for the
# thread. Then it looks ever more seldom, up to _MOST_SECONDS apart.
_FIRST_SECONDS = 0.3
_MOST_SECONDS = 5.0
# How often it tries to make the engine. What keeps it from that may pass: modules that another
# thread is importing, a store that is locked.
_ATTEMPTS = 20
# ksmpy takes memory itself. So an engine is made only when the process has taken so many times as
# many bytes since its start as the least piece that is merged has (`min_bytes`).
_WORTH = 16
_MIN_BYTES = 1 << 20
# Python gives the pieces of 1 MiB back in which its small objects lie when they are empty. What is
# imported while a program makes millions of objects lies between those, and the pieces stay when
# the others are gone: a program that made an Arrow table of two lists was 25 to 40 MiB larger. So
# an engine waits until no more than so many objects come or go in _STILL_SECONDS, but not longer
# than _MOST_MOVING_SECONDS.
_STILL_SECONDS = 0.05
_STILL_OBJECTS = 5000
_MOST_MOVING_SECONDS = 10.0
# The signals that a thread brings on itself: it cannot block them.
_FAULTS = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGABRT", "SIGSYS")
# Of these modules one is there before Python code makes another interpreter.
_INTERPRETERS = ("_interpreters", "_xxsubinterpreters")
# How often it is put off because the program is importing something.
_PUT_OFF = 10
# What Python 3.12 and later say when a process with several threads forks.
_FORK_WARNING = (
    "This process (pid=%d) is multi-threaded, use of %s() may lead to deadlocks in the child."
)
# How long fork() and the end of the process wait for an engine that is being made, in seconds,
# while the thread that makes it does not get on.
_PATIENCE = 5.0


def _is_main_interpreter():
    """Up to Python 3.11 the process is aborted where a subinterpreter ends before its threads, and
    none of them can have an engine.
    """
    import _thread

    if hasattr(_thread, "_is_main_interpreter"):  # since Python 3.12
        return _thread._is_main_interpreter()
    known = "_xxsubinterpreters" in sys.modules
    try:
        import _xxsubinterpreters as interpreters
    except ImportError:  # it was built without, and only C code can make one
        return True
    if not known:
        del sys.modules["_xxsubinterpreters"]
    return int(interpreters.get_current()) == int(interpreters.get_main())


def _would_import_ctypes_again():
    """Whether an interpreter that has ended in this process had imported ctypes, and this is one of
    Python 3.12, where the process may be aborted once the next one imports it, as ksmpy does.
    """
    if sys.version_info[:2] != (3, 12) or "_ctypes" in sys.modules:
        return False
    try:
        with _File("/proc/self/maps") as file:
            maps = file.read()
    except OSError:
        return False
    # Extension modules stay. That of ctypes may be part of the interpreter, ksmpy's is not.
    return b"/_ctypes." in maps or b"/_ksmpy." in maps


def _is_emulated():
    """Whether QEMU runs this program on a processor that it emulates: page tables and calls that
    are looked at are QEMU's own then, and a process grew by hundreds of MiB, or ended by SIGSEGV.
    What /proc/self says of the program there is QEMU's answer; of the thread it is the kernel's.
    """
    try:
        return os.path.basename(os.readlink("/proc/thread-self/exe")).startswith("qemu-")
    except OSError:
        return False


def _wanted():
    environ = os.environ
    return (
        sys.version_info >= (3, 10)
        and "t" not in sys.abiflags  # a free-threaded one cannot have an engine
        and environ.get("KSMPY_FOLLOW")
        # Valgrind knows no userfaultfd, and says so at each try, nor what becomes of pages by it.
        and "/vgpreload_" not in environ.get("LD_PRELOAD", "")
        and environ.get("KSMPY_DISABLE", "").strip().lower() not in ("1", "yes", "true", "on")
        and not _is_emulated()
        and _is_main_interpreter()
        and not _would_import_ctypes_again()
    )


def _anonymous_bytes():
    with _File("/proc/thread-self/statm") as file:
        words = file.read().split()
    return (int(words[1]) - int(words[2])) * os.sysconf("SC_PAGE_SIZE")


def _forks_in_c():
    """Whether this is uWSGI, which forks its workers without telling the interpreter, and has let
    go of the interpreter's lock (the GIL) then.

    A thread that has the lock in that moment keeps it from the worker for ever, so there is to be
    none in the process that forks. uWSGI's own module is there at this time since Python 3.12.
    """
    return "uwsgi" in sys.builtin_module_names or os.path.basename(
        os.readlink("/proc/self/exe")
    ).startswith("uwsgi")


class _Finder:
    """Lets one thread import what the interpreter had found before the program.

    The program's folder stands before all others in sys.path then. A file of it may be named like
    a module of the standard library: it is the program's to run, and what is imported in its place
    would be the program's, too. So who needs that module is left alone. A folder may be named
    ksmpy, as it is where ksmpy's own source lies.
    """

    def __init__(self, path, thread):
        import _thread
        from _frozen_importlib_external import PathFinder

        self._path, self._thread = path, thread
        self._get_ident, self._find = _thread.get_ident, PathFinder.find_spec
        self._followed_by = PathFinder

    def __enter__(self):
        finders = sys.meta_path
        at = finders.index(self._followed_by) if self._followed_by in finders else len(finders)
        finders.insert(at, self)

    def __exit__(self, *_):
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, name, path=None, _target=None):
        """As the import system asks for it."""
        if path is not None or self._get_ident() != self._thread:
            return None
        if name == "ksmpy":
            return self._find(name, self._path)
        if name in sys.stdlib_module_names and self._is_programs(name):
            raise ImportError("the program has a module %s of its own" % name)
        return None

    def _is_programs(self, name):
        first = sys.path[: next((i for i, at in enumerate(sys.path) if at in self._path), None)]
        spec = self._find(name, first)
        return spec is not None and spec.loader is not None  # which a folder without files has not


class _Follower:
    """Starts the engine of this process once it is worth it, and again in forked children."""

    def __init__(self):
        import _signal
        import _thread
        import atexit
        import threading  # noqa: F401  the first to import it must be the main thread

        # The functions are kept as they are now, since gevent and the like replace them later.
        self._get_ident = _thread.get_ident
        self._get_native_id = _thread.get_native_id
        self._start_thread, self._new_lock = _thread.start_new_thread, _thread.allocate_lock
        self._set_mask = _signal.pthread_sigmask
        self._block, self._set = _signal.SIG_BLOCK, _signal.SIG_SETMASK
        self._quiet = _signal.valid_signals() - {getattr(_signal, name) for name in _FAULTS}
        self._inherits = self._begun_here = False
        self._hooked = False
        self._logging = None  # if it was imported here
        # ksmpy.whole.follow, once it was imported. Tests take what was imported since out of
        # sys.modules again (mock.patch.dict), and another one would know nothing of this one.
        self._follow = None
        self._fork_warnings = []  # the filters that ignore them
        self._base = _anonymous_bytes()
        self._path = list(sys.path)
        self._renew()
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork,
            after_in_child=self._in_child,
        )
        atexit.register(self._at_exit)

    def _renew(self):
        self._pid = _getpid()
        self._inherits = self._inherits or self._begun_here
        self._begun_here = False
        self._touched = 0  # pages of memory that the thread touched first while it imported ksmpy
        # Held while ksmpy is imported and the engine made, and by fork(), which waits for that: a
        # child forked meanwhile would find modules locked by a thread that it does not have.
        self._lock = self._new_lock()
        self._forking = self._tried = 0  # the thread that forks: has the lock, has waited for it
        self._over = False
        self._may_wait = _MOST_MOVING_SECONDS
        self._awake = self._new_lock()  # released at the end, so that the thread sleeps no more
        self._awake.acquire()
        self._runs = self._new_lock()  # held while there is the thread
        self._ident = self._native_id = 0  # of the thread that makes the engine, while it does

    def start(self):
        """Start the thread that waits. It, and all threads that it starts, block signals, which the
        program expects to be handled by its own threads. Returns a lock that the thread releases
        when it has begun.
        """
        self._ignore_fork_warning()
        begun = self._new_lock()
        begun.acquire()
        # The mask is asked for first: a signal that came before may raise where it is blocked.
        mask = self._set_mask(self._block, ())
        self._runs.acquire()
        try:
            self._set_mask(self._block, self._quiet)
            self._start_thread(self._run, (self._lock, self._awake, self._runs, begun))
        except RuntimeError:  # no more threads for this process
            self._runs.release()
            begun.release()
        finally:
            self._set_mask(self._set, mask)
        return begun

    def _ignore_fork_warning(self):
        """Put filters first that ignore the warning: the program has not asked for the threads
        that it would be warned of. Its own filters may have come before ours since the last call.

        A filter's message may be a string, which must then be equal. Programs read and pickle the
        filters (joblib's workers, scikit-learn), and a pattern would take the module `re`.
        """
        if sys.version_info < (3, 12):
            return
        import _warnings  # the module warnings takes its list over when it is imported

        filters = getattr(sys.modules.get("warnings"), "filters", _warnings.filters)
        others = [item for item in filters if all(item is not own for own in self._fork_warnings)]
        texts = [_FORK_WARNING % (_getpid(), name) for name in ("fork", "forkpty")]
        self._fork_warnings = [("ignore", text, DeprecationWarning, None, 0) for text in texts]
        filters[:] = self._fork_warnings + others

    def _run(self, lock, awake, runs, begun):
        begun.release()
        try:
            self._wait(lock, awake)
        except Exception:  # of a hook of the program's, for audits or to trace all threads
            pass
        finally:
            runs.release()

    def _wait(self, lock, awake):
        seconds = _FIRST_SECONDS
        attempts = put_off = 0
        while not self._over and not self._begun_here and attempts < _ATTEMPTS:
            if awake.acquire(timeout=seconds) or self._is_stopped_by_signals():
                return
            seconds = min(seconds * 1.5, _MOST_SECONDS)
            if put_off < _PUT_OFF and self._disturbs_imports():
                put_off += 1
            elif self._worth():
                attempts += 1
                self._try(lock, awake)

    def _try(self, lock, awake):
        """Make the engine, or let it be: Python would print what this thread raises."""
        try:
            self._wait_for_objects(awake)
            self._ident, self._native_id = self._get_ident(), self._get_native_id()
            with lock:
                if not self._over and not self._is_stopped_by_signals():
                    self._begun_here = self._begin()
        except MemoryError:  # the program has taken all that it may have, for a while
            pass
        finally:
            self._ident = 0

    def _is_stopped_by_signals(self):
        """Whether Mono is there, which pythonnet asks for what is imported: then it waits for
        this thread to take a signal whenever it collects garbage (ksmpy/threads.py says more).
        """
        return "clr_loader.mono" in sys.modules

    def _disturbs_imports(self):
        """Whether an import in this thread could break one of the program's.

        gevent replaces the locks of imports. A thread of the program that imports a module which
        this thread is importing does not wait then: LoopExit is raised, as no greenlet is left.
        """
        if "gevent.monkey" not in sys.modules:
            return False
        if _INTERPRETERS[0] in sys.modules or _INTERPRETERS[1] in sys.modules:
            return True  # nobody may ask for their frames, as below for their memory
        for frame in sys._current_frames().values():
            while frame is not None:
                if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
                    return True
                frame = frame.f_back
        return False

    def _worth(self):
        if self._inherits:  # the parent has an engine, whose pages are here too
            return True
        try:
            least = int(os.environ.get("KSMPY_MIN_BYTES", ""))
        except ValueError:
            least = _MIN_BYTES
        try:
            return _anonymous_bytes() - self._base >= _WORTH * least
        except (OSError, MemoryError):  # all descriptors or all memory are in use, for a while
            return False

    def _wait_for_objects(self, awake):
        """Wait while small objects come and go by the thousand, as it is no time to import. Who
        goes on with the parent's engine has imported everything.
        """
        if self._inherits:
            return
        before, waited = self._count_objects(), 0.0
        while waited < self._may_wait:
            if awake.acquire(timeout=_STILL_SECONDS):
                return
            waited += _STILL_SECONDS
            now = self._count_objects()
            if abs(now - before) <= _STILL_OBJECTS:
                return
            before = now
        self._may_wait = 0.0

    def _count_objects(self):
        # From Python 3.12 on the count goes through the memory of other interpreters, too, while
        # they change it, and the process may end by SIGSEGV. None can come to be in the midst of
        # this line, as no other thread of this interpreter gets its lock there.
        modules, count = sys.modules, getattr(sys, "getallocatedblocks", int)
        return 0 if _INTERPRETERS[0] in modules or _INTERPRETERS[1] in modules else count()

    def _begin(self):
        with _Finder(self._path, self._get_ident()):
            try:
                before = self._faults()
                self._hook_logging()
                self._ignore_fork_warning()
                self._import()
                self._touched += self._faults() - before
            except Exception:  # ksmpy is not installed here, or its modules are half imported
                return False
            return self._follow.begin(self._touched * os.sysconf("SC_PAGE_SIZE"))

    def _import(self):
        if self._follow is None:
            from ksmpy.whole import follow

            self._follow = follow

    def _faults(self):
        """How many pages this thread has touched that were in memory, but not mapped. The program's
        other threads take memory meanwhile, which is none of ksmpy's.
        """
        with _File("/proc/self/task/%d/stat" % self._get_native_id()) as file:
            return int(file.read().rpartition(b")")[2].split()[7])

    def _hook_logging(self):
        # logging has a hook that takes its lock before a fork. The hooks that were registered last
        # are called first, so this one makes fork() wait for this thread before logging's lock is
        # taken, which this thread may need.
        if not self._hooked:
            fresh = "logging" not in sys.modules
            import logging

            os.register_at_fork(before=self._wait_for_engine)
            self._hooked = True
            self._logging = logging if fresh else None

    def _wait_for_engine(self):
        own = self._get_ident()
        if own not in (self._forking, self._tried, self._ident):
            self._tried = own
            if self._acquire():
                self._forking = own

    def _acquire(self):
        """Take the lock. On a busy machine that may last, so only a thread that does not get on is
        not waited for: it may be waiting for a lock that is held here.
        """
        before = None
        while not self._lock.acquire(timeout=_PATIENCE if before else 0):
            now = self._steps()
            if now == before and now[0].split()[1] not in (b"R", b"D"):
                return False
            before = now
        return True

    def _steps(self):
        """The state of the thread that waits, and how often it has run or been interrupted."""
        try:
            with _File("/proc/self/task/%d/status" % self._native_id) as file:
                lines = file.read().splitlines()
        except OSError:  # it is over, or about to be
            lines = [b"State: ?"]
        return [line for line in lines if line.startswith(b"State") or b"ctxt_switches" in line]

    def _before_fork(self):
        self._ignore_fork_warning()  # the program's filters may be others by now
        self._wait_for_engine()
        # A fork may have begun before logging was imported, and have waited here meanwhile. Then
        # logging's hook before the fork is not called, but the one after it, which releases the
        # lock: so it is taken here.
        if self._logging is not None and not self._logging._lock._is_owned():
            self._logging._lock.acquire()

    def _after_fork(self):
        self._tried = 0
        if self._forking == self._get_ident():
            self._forking = 0
            self._lock.release()

    def _in_child(self):
        if self._get_ident() not in (self._forking, self._ident):
            self._drop_unfinished()
        self._renew()
        self.start()

    def wait_for_fork(self):
        """Start the thread in children only, which call nothing that is registered: uWSGI calls a
        function of theirs, unless the program has one of its own, and they collect garbage.
        """
        import gc

        gc.callbacks.append(self._look_around)

    def _look_around(self, _phase, _info):
        if _getpid() != self._pid:
            self._in_child()
        elif "uwsgi" in sys.modules and not hasattr(sys.modules["uwsgi"], "post_fork_hook"):
            sys.modules["uwsgi"].post_fork_hook = self._notice_fork

    def _notice_fork(self):
        if _getpid() != self._pid:
            self._in_child()

    def _drop_unfinished(self):
        """Modules that a thread of the parent is importing, which the fork could not wait for, are
        finished by nobody here: whoever imports one would wait for ever.
        """
        import _frozen_importlib

        locks = _frozen_importlib._module_locks
        for name, reference in list(locks.items()):
            lock = reference()
            if lock is not None and lock.owner == self._ident:
                del locks[name]
                sys.modules.pop(name, None)

    def _at_exit(self):
        if self._pid != _getpid():
            return  # a child that C code has forked: it has no such thread
        self._over = True
        self._awake.release()
        if self._acquire():
            self._lock.release()
            # If it outlived the interpreter it would run in the next one that the process starts.
            self._runs.acquire(timeout=_PATIENCE)
        if self._begun_here:
            self._follow.end()


def _follow():
    if _wanted():
        try:
            follower = _Follower()
            forks_in_c = _forks_in_c()
        except OSError:  # no /proc
            return
        if forks_in_c:
            follower.wait_for_fork()
            return
        # A new thread frees memory before it takes the interpreter's lock, and after this file the
        # interpreter exchanges its allocators for a moment. With debug hooks (python -X dev) the
        # process was aborted where the two met: in 2 of 100 runs of Python 3.11.
        follower.start().acquire(timeout=_PATIENCE)


def _hand_on():
    here = os.path.dirname(__file__)
    sys.path[:] = [path for path in sys.path if path != here]
    sys.modules.pop("sitecustomize", None)
    # If the program has none this raises ImportError, as without ksmpy, and site expects that.
    import sitecustomize  # noqa: F401


# Python 2 takes all names from a module that nobody refers to any more.
_this = sys.modules.get("sitecustomize")
try:
    _hand_on()
finally:
    _follow()
