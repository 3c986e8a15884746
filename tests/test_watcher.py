"""Looking at all processes time after time: what is looked at anew, and what is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from ksmpy import proc
from ksmpy.watch import watcher
from ksmpy.watch.watcher import Watcher


@dataclass
class Machine:
    """Processes with a store each, of which a look at one takes a second of processor time."""

    clock: float = 0.0
    spent: float = 0.0
    ran: dict[int, float] = field(default_factory=dict)
    looked: list[int] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.clock

    def thread_time(self) -> float:
        return self.spent

    def examine(self, pid: int, *_args: Any, **_kwargs: Any) -> str:
        self.spent += 1
        self.looked.append(pid)
        return f"subject {pid}"

    def look(self, watch: Watcher, seconds: float, *first: int) -> list[int]:
        """Whom a look after so many seconds looks at anew."""
        self.clock += seconds
        self.looked = []
        assert watch.look(first) == [f"subject {pid}" for pid in sorted(self.ran)]
        return self.looked


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """In the place of /proc."""
    made = Machine()
    monkeypatch.setattr(watcher, "time", made)
    monkeypatch.setattr(watcher, "examine", made.examine)
    monkeypatch.setattr(watcher, "mapped_stores", lambda _lines: {("00:01", 1)})
    monkeypatch.setattr(watcher.os, "listdir", lambda _path: ["self", *map(str, made.ran)])
    monkeypatch.setattr(watcher, "mappings_of_user", lambda _pid: [])
    monkeypatch.setattr(proc, "cpu_seconds", made.ran.get)
    return made


def test_each_look_has_an_allowance(machine: Machine) -> None:
    """Whoever ran and was not looked at for longest comes first; who has not run comes last."""
    machine.ran.update(dict.fromkeys(range(1, 7), 0.0))
    watch = Watcher()
    look = 1 / watcher._SHARE  # the seconds that pay for a look at one process
    assert sorted(machine.look(watch, 0)) == [1, 2, 3, 4, 5, 6], "nobody was known"
    assert machine.look(watch, 0) == [], "there is no allowance yet"
    machine.ran.update({2: 1.0, 5: 1.0})
    earlier = machine.look(watch, 2.5 * look)
    assert len(earlier) == 3 and set(earlier[:2]) == {2, 5}, "these two have run"
    machine.ran.update(dict.fromkeys(machine.ran, 2.0))
    assert len(machine.look(watch, 2 * look)) == 2, "half a look had been taken in advance"
    assert not set(machine.looked) & set(earlier), "others were waiting for longer"


def test_who_is_new_or_shown_is_looked_at_in_any_case(machine: Machine) -> None:
    """Another process under the number of one that has ended, too: it has run for less."""
    machine.ran.update({1: 5.0, 2: 5.0, 3: 5.0})
    watch = Watcher()
    machine.look(watch, 0)
    machine.ran.update({1: 1.0, 3: 6.0, 4: 0.0})
    del machine.ran[2]
    assert sorted(machine.look(watch, 0, 3)) == [1, 3, 4]


def test_who_has_not_run_is_looked_at_when_others_have(machine: Machine) -> None:
    """Once, however long nothing happens then: its PSS has changed by what they did."""
    machine.ran.update({1: 0.0, 2: 0.0, 3: 0.0})
    watch = Watcher()
    machine.look(watch, 0)
    long = 10 / watcher._SHARE
    assert machine.look(watch, long) == []
    machine.ran[2] = 1.0
    assert sorted(machine.look(watch, long)) == [1, 2, 3]
    assert machine.look(watch, long) == []
    del machine.ran[2]
    assert sorted(machine.look(watch, long)) == [1, 3]
    assert machine.look(watch, long) == []


def test_more_processes_have_more_in_proportion(machine: Machine) -> None:
    """The last one is looked at as often as if there were 25."""
    for count in (watcher._SHARE_FOR, 4 * watcher._SHARE_FOR):
        machine.ran.update(dict.fromkeys(range(count), 0.0))
        watch = Watcher()
        machine.look(watch, 0)
        machine.ran.update(dict.fromkeys(range(count), 1.0))
        seconds = watcher._SHARE_FOR / watcher._SHARE
        assert len(machine.look(watch, seconds)) >= count - 1
        machine.ran.clear()
