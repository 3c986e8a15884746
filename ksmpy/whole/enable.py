"""One engine for a whole process, and starting it in worker processes."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
from typing import Any

from ksmpy import native, threads
from ksmpy.engine import notices
from ksmpy.engine.engine import Engine, core_of
from ksmpy.engine.knobs import KNOBS
from ksmpy.engine.numa import Topology
from ksmpy.errors import KsmpyError
from ksmpy.own import own
from ksmpy.store.files import store_path
from ksmpy.store.store import Store
from ksmpy.whole.adopt import WAYS, Adopter, Coverage
from ksmpy.whole.common import common_store
from ksmpy.whole.options import UNSET, environment

_log = logging.getLogger("ksmpy")

__all__ = ["coverage", "disable", "enable", "enable_unasked", "enabled_engine", "worker_init"]

_ENGINE_OPTIONS = ("store", "topology", "freeze", "tracking")
# The options that enable() takes from the environment again when it goes on with an inherited
# engine; the others are as the parent has set them.
_PROCESS_OPTIONS = ("run", "adopt", "min_bytes")
_DEFAULT_WAY = "mappings"
_SANITIZERS = ("asan", "hwasan", "msan", "tsan")


class _State:
    """The process's engine; in a forked child the parent's, until enable() is called there."""

    def __init__(self) -> None:
        self.lock = threads.RLock()
        self.pid = 0
        self.engine: Engine | None = None
        self.options: dict[str, Any] = {}
        self.adopter: Adopter | None = None
        self.unasked = False
        self.package_bytes = 0

    def present(self) -> Engine | None:
        """The engine, if this very process enabled it and it is open."""
        return self._open() if self.pid == own.getpid() else None

    def inherited(self) -> Engine | None:
        """The parent's engine, if this process can make it its own: it is on a shared store."""
        shared = self.pid != own.getpid() and self.options.get("store") is not None
        return self._open() if shared else None

    def differing(self, options: dict[str, Any]) -> str | None:
        """The first option that an engine is made with and that is not as it was then."""
        for name in _ENGINE_OPTIONS:
            if name in options and not _same(options[name], self.options.get(name)):
                return name
        return None

    def _open(self) -> Engine | None:
        return None if self.engine is None or core_of(self.engine).closed else self.engine


_state = _State()


def enabled_engine() -> Engine | None:
    """The engine, if this process called enable()."""
    return _state.present()


def coverage() -> Coverage | None:
    """What the last look for memory to adopt has found; None where enable() looks for none."""
    adopter = _state.adopter if _state.present() is not None else None
    return None if adopter is None else adopter.coverage


def _in_child() -> None:
    """In a forked child: forget a private engine, without touching it, and in any case the lock
    and the adopter, whose thread does not exist here.
    """
    global _state
    parents, _state = _state, _State()
    if parents.options.get("store") is not None:
        _state.engine, _state.options = parents.engine, parents.options


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def stop_adopting() -> None:
    """End the adopter's thread, which would run in the next interpreter that the process starts."""
    if _state.present() is not None and _state.adopter is not None:
        _state.adopter.stop()


atexit.register(stop_adopting)


def enable(
    *,
    store: str | Store | None = UNSET,
    topology: Topology | None = UNSET,
    freeze: str = UNSET,
    tracking: str = UNSET,
    adopt: str | bool = UNSET,
    min_bytes: int = UNSET,
    run: int = UNSET,
    pages_to_scan: int = UNSET,
    sleep_millisecs: int = UNSET,
    merge_across_nodes: int = UNSET,
    max_page_sharing: int = UNSET,
    stable_node_chains_prune_millisecs: int = UNSET,
    use_zero_pages: int = UNSET,
    smart_scan: int = UNSET,
    advisor_mode: str = UNSET,
    advisor_target_scan_time: int = UNSET,
    advisor_max_cpu: int = UNSET,
    advisor_min_pages_to_scan: int = UNSET,
    advisor_max_pages_to_scan: int = UNSET,
    vma_share_percent: int = UNSET,
) -> Engine:
    """Make the process's engine, start its background scanner, and return it.

    Options: store, topology, freeze, tracking as for Engine; the knobs by their names (run is 1
    unless given); `adopt`: what memory of at least `min_bytes` (1 MiB) bytes is found and
    registered without the program's help, once it has lived for two looks. "mappings" (or True):
    what the C library's malloc has, and of all other memory what Python objects have; as "objects"
    where no userfaultfd tells what is given back. "objects": what arrays, tensors and other Python
    objects have. "all": every private anonymous mapping, whoever made it. False: nothing.
    `coverage()` says what was found. KSMPY_* variables give the defaults.

    Idempotent: a second call sets the knobs it names on the same engine. In a forked child it goes
    on with the parent's engine, its regions and knobs, if that is on a shared store and no other
    engine is asked for; else it makes a new one.

    Raises TypeError for an unknown option, ValueError for a bad KSMPY_* value or `adopt`, OSError
    as the knob does, KsmpyError when the engine is there already with another freeze or the like.
    """
    options = {name: value for name, value in locals().items() if value is not UNSET}
    notices.hand_on()
    with _state.lock:
        engine = _state.present()
        if engine is None:
            return _begin(options)
        differing = _state.differing(options)
        if differing is not None and _state.unasked:
            disable()
            return _begin(options)
        if differing is not None:
            raise KsmpyError(f"already enabled with another {differing}: disable() first")
        _set_knobs(engine, options)
        return engine


def enable_unasked(package_bytes: int) -> bool:
    """enable() for a program that has not called it, and may still do so with other options.
    `package_bytes`: what ksmpy has taken to be imported, which the engine tells of.

    Only where there is an engine to go on with, or a store to share. Returns whether the process
    has an engine now; raises what enable() does.
    """
    with _state.lock:
        _state.package_bytes = package_bytes
        if _state.present() is None and _why_nothing_is_adopted():
            return False
        if _state.present() is None and (_state.inherited() is not None or _default_store()):
            _begin({})
            _state.unasked = True
        return _state.present() is not None


def _default_store() -> str | Store | None:
    """KSMPY_STORE, or the store of `ksmpy run`, where one is above this process."""
    name = environment().get("store")
    return name if name is not None else common_store()


def _same(one: Any, other: Any) -> bool:
    """Whether an option is as it was. A store may be given once by name and once as a Store."""
    if {type(one), type(other)} == {str, Store}:
        one, other = (store_path(s) if isinstance(s, str) else s.path for s in (one, other))
    return bool(one == other)


def _begin(options: dict[str, Any]) -> Engine:
    native.require()
    defaults = {"run": 1, **environment()}
    store = _default_store()
    if store is not None:
        defaults["store"] = store
    engine = _state.inherited()
    if engine is None or _state.differing(options) is not None:
        return _start({**defaults, **options})
    # The parent has set the other knobs. To set them again is needless, and might be refused.
    chosen = {name: defaults[name] for name in _PROCESS_OPTIONS if name in defaults}
    return _go_on(engine, {**chosen, **options})


def _start(options: dict[str, Any]) -> Engine:
    made = {name: options[name] for name in _ENGINE_OPTIONS if name in options}
    engine = Engine(**made)
    try:
        _run(engine, options)
    except BaseException:
        core_of(engine).leave()
        raise
    _state.options = made
    return engine


def _go_on(engine: Engine, options: dict[str, Any]) -> Engine:
    """Go on with an inherited engine. After an error it stands still, and enable() can be tried
    again.
    """
    core_of(engine).require_open()
    try:
        _run(engine, options)
    except BaseException:
        engine.knobs.run = 0
        raise
    return engine


def _run(engine: Engine, options: dict[str, Any]) -> None:
    """Start the engine's threads; from then on it is the process's."""
    core_of(engine).package_bytes = _state.package_bytes
    _set_knobs(engine, options)
    adopter = None
    way = _way(options.get("adopt", True), engine)
    if way is not None:
        adopter = Adopter(core_of(engine), options.get("min_bytes", 1 << 20), way)
        adopter.start()
    core_of(engine).history.facts = dict if adopter is None else adopter.facts
    _state.pid, _state.engine, _state.adopter = own.getpid(), engine, adopter
    _state.unasked = False


def _way(adopt: object, engine: Engine) -> str | None:
    """How to find memory to adopt, or None. ValueError for another word."""
    if adopt in (False, "0"):
        return None
    way = _DEFAULT_WAY if adopt in (True, "1") else adopt
    if way not in WAYS:
        raise ValueError(f"adopt must be one of {', '.join(WAYS)} or False, not {adopt!r}")
    reason = _why_nothing_is_adopted()
    if reason:
        _log.warning("nothing is adopted: %s; register it", reason)
        return None
    # Without userfaultfd nothing tells of memory that its owner gives back and expects to be zeros.
    if engine.freeze == "signal" and way != "objects" and adopt == way:
        notices.adopts_objects_only()
    return "objects" if engine.freeze == "signal" else str(way)


def _why_nothing_is_adopted() -> str:
    """Which malloc this is, if with it only memory may be merged that its owner has registered.

    jemalloc takes memory for zeroed after MADV_DONTNEED, and merged pages show their frames' bytes
    then. A sanitizer ends the program where a function of the C library reads what lies between
    blocks, or was freed, whoever calls it.
    """
    loaded = ctypes.CDLL(None)
    if hasattr(loaded, "mallctl"):
        return "jemalloc takes what it gave back for zeroed"
    if any(hasattr(loaded, f"__{kind}_init") for kind in _SANITIZERS):
        return "a sanitizer minds what ksmpy reads"
    return ""


def _set_knobs(engine: Engine, options: dict[str, Any]) -> None:
    # These two come last: the advisor, once it is on, refuses pages_to_scan, and run starts to
    # scan.
    names = [name for name in options if name in KNOBS and name != "run"]
    for name in (*names, "advisor_mode", "run"):
        if name in options:
            setattr(engine.knobs, name, options[name])


def disable() -> None:
    """Close the process's engine: everything gets memory of its own back. Idempotent.

    OSError when there is not enough memory: the engine stays, stopped, and disable() can be
    tried again.
    """
    with _state.lock:
        engine, adopter = _state.present(), _state.adopter
        if engine is None:
            return
        if adopter is not None:
            adopter.stop()
            _state.adopter = None
        engine.close()
        _state.engine = None


def worker_init(*_: object, **options: Any) -> None:
    """`enable(**options)` as the initializer of a worker process.

    For multiprocessing.Pool and ProcessPoolExecutor (`initializer=ksmpy.worker_init`) and for
    torch's DataLoader (`worker_init_fn=ksmpy.worker_init`, whose worker id is ignored).
    """
    enable(**options)
