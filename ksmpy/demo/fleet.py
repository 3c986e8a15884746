"""The demo's worker processes, as their parent sees them: each answers requests all the time, and
does what else it is asked to in between.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksmpy.demo.worker import serve
from ksmpy.errors import KsmpyError, Unsupported

if TYPE_CHECKING:
    from ksmpy.store.store import Store

__all__ = ["SENTENCES", "Fleet", "Member"]

SENTENCES = (
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
    "Equal pages of many processes come to share one copy.",
    "Who writes gets a page of his own, and the others keep theirs.",
    "How much memory do four workers need that have loaded the same model?",
    "Naïve café owners in Ångström serve 3.14 pies, don't they?",
    "A kernel thread scans the memory of programs that asked for it, page by page, and looks for"
    " pages that hold the same bytes; what it finds it keeps once, without the right to write.",
)

Count = Callable[[int, int], None]
"""Called with (how many have replied, of how many)."""

_PAUSE = 0.02  # seconds between an answer and the worker's next request
_END = 10.0  # seconds that a worker may take to end


@dataclass(eq=False)
class Member:
    """One worker."""

    number: int
    process: BaseProcess
    pipe: Connection
    orders: deque[tuple[Any, ...]] = field(default_factory=deque)
    """What it is to do before it answers the next request."""
    asked: tuple[Any, ...] | None = ("start",)
    """What it is doing now; its first message says that it has started."""
    since: float = 0.0
    replies: list[Any] = field(default_factory=list)
    answered: int = 0
    """Requests; the number of the next sentence, too."""
    model: str = "the file's"
    """Which answers it must give: a fine-tuned model gives others."""

    @property
    def pid(self) -> int:
        """Of its process."""
        pid = self.process.pid
        assert pid is not None
        return pid

    def send(self, message: tuple[Any, ...]) -> None:
        """Ask for something; one thing at a time."""
        self.asked, self.since = message, time.perf_counter()
        try:
            self.pipe.send(message)
        except ConnectionError:
            raise self.ended() from None

    def ended(self) -> KsmpyError:
        """The error for a worker that ended by itself."""
        self.process.join(_END)
        return KsmpyError(f"worker {self.number} ended by itself: code {self.process.exitcode}")


class Fleet:
    """Worker processes that each have loaded the model. A context manager: they end with it.

    What waits for workers raises KsmpyError, naming the worker, when one fails or ends by itself;
    Unsupported when the machine lacks what its engine needs.
    """

    def __init__(self, count: int, model: Path, store: Store, options: dict[str, Any]) -> None:
        """Starts the processes; replies() waits until they have loaded. OSError.

        `options`: what their engines are made with, besides the store.
        """
        self.members: list[Member] = []
        self.latencies: list[float] = []
        """Seconds from each request to its answer, since somebody emptied the list."""
        self.problems: list[str] = []
        """Answers that differ from what an earlier or another worker's was."""
        self._expected: dict[tuple[str, str], bytes] = {}
        threads = max(1, (os.cpu_count() or 1) // count)
        # Ctrl-C is for the parent to act on. SIGINT is blocked while the workers start, and they
        # inherit that. To start the resource tracker unblocks it, so the tracker is started before.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            try:
                for number in range(count):
                    self._start(number, (model, store, options, threads))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        except BaseException:  # KeyboardInterrupt, too: a Ctrl-C that came while it was blocked
            self.close()
            raise

    def everybody(self, *order: Any, progress: Count | None = None) -> list[Any]:
        """Have every worker do this, and return what each replies. Who is not at it answers
        requests.
        """
        for member in self.members:
            member.replies.clear()
            member.orders.append(order)
        return self.replies(progress)

    def replies(self, progress: Count | None = None) -> list[Any]:
        """One reply of each worker, when all are there."""
        replied = -1
        while replied < len(self.members):
            before, replied = replied, sum(bool(member.replies) for member in self.members)
            if progress is not None and replied != before:
                progress(replied, len(self.members))
            if replied < len(self.members):
                self.turn()
        return [member.replies.pop() for member in self.members]

    def one(self, member: Member, *order: Any) -> Any:
        """Have one worker do this, and return its reply; the others answer requests."""
        member.replies.clear()
        member.orders.append(order)
        while not member.replies:
            self.turn()
        return member.replies.pop()

    def answer(self, requests: int) -> None:
        """Go on until every worker has answered so many more requests."""
        goals = {member: member.answered + requests for member in self.members}
        while any(member.answered < goals[member] for member in self.members):
            self.turn()

    def quiet(self) -> None:
        """Have everybody do nothing, with what they no longer need given back."""
        while any(member.asked for member in self.members):
            self.turn(requests=False)
        for member in self.members:
            member.orders.append(("trim",))
        while any(member.asked or member.orders for member in self.members):
            self.turn(requests=False)

    def kill(self, member: Member) -> None:
        """SIGKILL, in the middle of an answer."""
        while member.asked is None:
            self.turn()
        member.process.kill()
        member.process.join()
        member.pipe.close()
        self.members.remove(member)

    def turn(self, *, requests: bool = True) -> None:
        """Ask who is free, take in what is there; waits a moment when nothing is."""
        now = time.perf_counter()
        for member in self.members:
            if member.asked is None and member.orders:
                member.send(member.orders.popleft())
            elif member.asked is None and requests and now >= member.since + _PAUSE:
                member.send(("encode", SENTENCES[member.answered % len(SENTENCES)]))
        busy = {member.pipe: member for member in self.members if member.asked}
        for pipe in wait(list(busy), _PAUSE):
            self._receive(busy[pipe])  # type: ignore[index]  # the pipes that went in

    def close(self) -> None:
        """End the workers; their last words are not waited for."""
        for member in self.members:
            member.pipe.close()
        for member in self.members:
            member.process.join(_END)
            if member.process.is_alive():
                member.process.kill()
                member.process.join()
        self.members.clear()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _start(self, number: int, arguments: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, *arguments), daemon=True)
        try:
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.members.append(Member(number, process, ours))

    def _receive(self, member: Member) -> None:
        try:
            state, value = member.pipe.recv()
        except (EOFError, ConnectionError):
            raise member.ended() from None
        if state != "done":
            kind = Unsupported if state == "unsupported" else KsmpyError
            raise kind(f"worker {member.number}: {value}")
        assert member.asked is not None
        name, *arguments = member.asked
        member.asked = None
        if name != "encode":
            member.replies.append(value)
            return
        now = time.perf_counter()
        self.latencies.append(now - member.since)
        member.since = now
        member.answered += 1
        if self._expected.setdefault((member.model, arguments[0]), value) != value:
            self.problems.append(
                f"worker {member.number} answered {arguments[0]!r} otherwise than before"
            )
