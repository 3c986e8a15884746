"""One engine for a whole process, and starting it in worker processes."""

from __future__ import annotations

import os
import threading
from typing import Any

from ksmpy import config
from ksmpy.adopt import Adopter
from ksmpy.engine import Engine
from ksmpy.errors import KsmpyError
from ksmpy.store import Store
from ksmpy.store_files import store_path

__all__ = ["disable", "enable", "worker_init"]

_ENGINE_OPTIONS = ("store", "topology", "freeze", "tracking")


class _State:
    """The process's engine. A forked child finds its parent's here and lets it go untouched."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.pid = 0
        self.engine: Engine | None = None
        self.options: dict[str, Any] = {}
        self.adopter: Adopter | None = None

    def present(self) -> Engine | None:
        """The engine, if this very process made it and it is open."""
        if self.engine is None or self.pid != os.getpid() or self.engine.closed:
            return None
        return self.engine


_state = _State()


def _fresh_state() -> None:
    global _state
    _state = _State()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_state)


def enable(**options: Any) -> Engine:
    """Make the process's engine, start its background scanner, and return it.

    Options: store, topology, freeze, tracking as for Engine; any knob by its name (run is 1
    unless given); `adopt` (True): find the numpy arrays and torch tensors of at least
    `min_bytes` (1 MiB) bytes that the program holds on to, and register them. KSMPY_*
    variables give the defaults. Idempotent: a second call sets the knobs it names on the same
    engine. In a forked child it makes a new engine.

    Raises TypeError for an unknown option, ValueError for a bad KSMPY_* value, OSError as the
    knob does, KsmpyError when the engine is there already with another freeze or the like.
    """
    known = {*config.OPTIONS, "topology"}
    for option in options:
        if option not in known:
            raise TypeError(f"unknown option {option!r}; there are {', '.join(sorted(known))}")
    with _state.lock:
        engine = _state.present()
        if engine is None:
            return _start({"run": 1, **config.environment(), **options})
        for option in _ENGINE_OPTIONS:
            if option in options and not _same(options[option], _state.options.get(option)):
                raise KsmpyError(f"already enabled with another {option}: disable() first")
        _set_knobs(engine, options)
        return engine


def _same(one: Any, other: Any) -> bool:
    """Whether an option is as it was; a store may be named once, and be given as itself then."""
    if {type(one), type(other)} == {str, Store}:
        one, other = (store_path(s) if isinstance(s, str) else s.path for s in (one, other))
    return bool(one == other)


def _start(options: dict[str, Any]) -> Engine:
    made = {name: options[name] for name in _ENGINE_OPTIONS if name in options}
    engine = Engine(**made)
    try:
        _set_knobs(engine, options)
        adopter = None
        if options.get("adopt", True):
            adopter = Adopter(engine, options.get("min_bytes", 1 << 20))
            adopter.start()
    except BaseException:
        engine.close()
        raise
    _state.pid, _state.engine, _state.options, _state.adopter = os.getpid(), engine, made, adopter
    return engine


def _set_knobs(engine: Engine, options: dict[str, Any]) -> None:
    # pages_to_scan is refused once the advisor is on, run starts the scanner: these two last.
    names = [name for name in options if name in config.KNOBS and name != "run"]
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
    """enable(**options) as the initializer of a worker process.

    For multiprocessing.Pool and ProcessPoolExecutor (`initializer=ksmpy.worker_init`) and for
    torch's DataLoader (`worker_init_fn=ksmpy.worker_init`, whose worker id is ignored).
    """
    enable(**options)
