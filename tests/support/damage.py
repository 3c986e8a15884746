"""What becomes of a newcomer to a store in whose header or index a byte is another one.

``python -m support.damage SEED TRIALS SECONDS alive|dead`` makes a store with merged pages, whose
process lives or was killed, changes a byte, and lets a process attach, merge and unmerge. Either
that is refused, or all its bytes stay right; and those of the living process stay right anyway.
Prints how often each happened; what else happened is an error.
"""

from __future__ import annotations

import errno
import faulthandler
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable

from ksmpy import Engine, Store, StoreError

from . import memory
from .layout import extents, frames_start
from .oracle import PAGE
from .patience import patience

PAGES = 64
REFUSALS = {
    errno.EUCLEAN, errno.EPROTO, errno.ETIMEDOUT, errno.EXDEV, errno.EREMOTE, errno.ESTALE,
    errno.ENOSPC,
}  # fmt: skip
RIGHT, REFUSED, WRONG = 0, 2, 3
#: With its own checks compiled in, an engine aborts where it comes upon the damage later.
DEBUG = os.environ.get("KSMPY_DEBUG", "0") not in ("", "0")
#: How long a newcomer may take: it waits up to 5 seconds for a lock that looks taken.
PATIENCE = int(patience(30))
#: The parts of the header that there is most to say about are in its first bytes.
HEAD, WHOLE_HEAD = 400, 7 * PAGE


def _other(array: memory.Bytes) -> memory.Bytes:
    copy = memory.twin(array)
    copy[::PAGE] ^= 9
    return copy


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = WRONG
    try:
        work()
        code = RIGHT
    except StoreError as error:
        if error.errno in REFUSALS:
            code = REFUSED
        else:
            sys.excepthook(*sys.exc_info())
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


class Inhabited:
    """A store with merged pages, and the process that made it."""

    def __init__(self, alive: bool) -> None:
        self.store = Store.anonymous()
        self._seen, tell = os.pipe()
        wait, self._ask = os.pipe()

        def inhabit() -> None:
            os.close(self._ask)  # so that it ends with whoever asks
            one = memory.distinct(PAGES, seed=3)
            arrays = [one, memory.twin(one), _other(one), memory.twin(one)]
            wanted = [array.tobytes() for array in arrays]
            engine = Engine(store=self.store)
            for array in arrays:
                engine.register(array)
            engine.scan(3)
            os.write(tell, b"r")
            while os.read(wait, 1):
                right = [array.tobytes() for array in arrays] == wanted
                os.write(tell, b"r" if right else b"w")

        self.pid = _fork(inhabit)
        os.close(tell)
        os.close(wait)
        assert os.read(self._seen, 1) == b"r"
        if not alive:
            self.kill()

    def is_right(self) -> bool:
        """Whether the living one's bytes are right; a dead one has none."""
        if not self.pid:
            return True
        os.write(self._ask, b"?")
        return os.read(self._seen, 1) == b"r"

    def kill(self) -> None:
        """SIGKILL."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.pid = 0

    def close(self) -> None:
        """End it all."""
        self.kill()
        os.close(self._seen)
        os.close(self._ask)
        self.store.close()


def newcomer(store: Store) -> None:
    """Merge with whoever is there, write, merge again, unmerge; AssertionError for wrong bytes."""
    signal.alarm(PATIENCE)
    one = memory.distinct(PAGES, seed=3)
    arrays = [one, _other(one)]
    wanted = [array.tobytes() for array in arrays]

    def compare() -> None:
        assert [array.tobytes() for array in arrays] == wanted, "wrong bytes"

    engine = Engine(store=store)
    for array in arrays:
        engine.register(array)
    engine.scan(3)
    compare()
    one[:100] ^= 1
    engine.scan(2)
    one[:100] ^= 1
    compare()
    engine.unmerge()
    compare()


def place(chance: random.Random, fd: int) -> int:
    """Anywhere in the header, or where the index has memory, most often in front."""
    if chance.random() < 0.4:
        return chance.randrange(WHOLE_HEAD if chance.random() < 0.3 else HEAD)
    start, stop = chance.choice(list(extents(fd, 0, frames_start(fd))))
    return chance.randrange(start, min(stop, start + PAGE) if chance.random() < 0.5 else stop)


def trial(chance: random.Random, inhabited: Inhabited) -> tuple[str, str | None]:
    """Change one byte; what the newcomer did, and what was wrong with that."""
    fd = inhabited.store.fileno()
    at = place(chance, fd)
    old = os.pread(fd, 1, at)
    flip = chance.random() < 0.7
    new = bytes([old[0] ^ 1 << chance.randrange(8) if flip else chance.randrange(256)])
    os.pwrite(fd, new, at)
    _, status = os.waitpid(_fork(lambda: newcomer(inhabited.store)), 0)
    code = os.waitstatus_to_exitcode(status)
    where = f"byte {at}: {old.hex()} -> {new.hex()}"
    ended = (RIGHT, REFUSED, -signal.SIGABRT) if DEBUG else (RIGHT, REFUSED)
    if code not in ended:
        return "wrong", f"{where}: the newcomer ended with {code}"
    if not inhabited.is_right():
        return "wrong", f"{where}: the neighbour's bytes are wrong"
    if code == REFUSED:
        os.pwrite(fd, old, at)  # the next one finds it as it was
    return {RIGHT: "right", REFUSED: "refused"}.get(code, "aborted"), None


def main(seed: int, trials: int, seconds: float, alive: bool) -> None:
    """So many trials, and more until the seconds are over."""
    faulthandler.enable()
    chance = random.Random(seed)
    deadline = time.monotonic() + seconds
    seen: Counter[str] = Counter()
    problems = []
    inhabited = Inhabited(alive)
    while seen.total() < trials or time.monotonic() < deadline:
        what, problem = trial(chance, inhabited)
        seen[what] += 1
        if problem:
            problems.append(problem)
        if what != "refused":
            inhabited.close()
            inhabited = Inhabited(alive)
    inhabited.close()
    print(json.dumps({**seen, "problems": problems}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "alive")
