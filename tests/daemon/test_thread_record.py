"""What threads of a running daemon touch, held against the table of threads, fields and locks.

The table's own test reads the classes that it names; this one finds a class that it should name.
"""

from __future__ import annotations

import gc
import importlib
import pkgutil
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import intent
from cluster.api_server import InMemory, Objects
from daemon.test_surprise import House
from daemon.test_surprise_threads import is_served
from waiting import until

import reconciler
from reconciler.daemon import cluster, requests, schedule
from reconciler.daemon.threads import ONE, TABLE
from reconciler.errors import Issue

ROOMS = ("cluster", "core", "daemon", "engine", "ipam", "migration", "node", "targets")

CHANGEABLE = (dict, list, set, deque)


class Record:
    """Which threads have touched which fields, once it was begun."""

    def __init__(self) -> None:
        self.is_on = False
        self.threads: dict[tuple[int, str, str], set[str]] = defaultdict(set)
        self.changed: set[tuple[int, str, str]] = set()
        self._kept: dict[int, Any] = {}

    def note(self, subject: Any, cls: str, field: str, value: Any, *, is_set: bool) -> None:
        if not self.is_on:
            return
        self._kept[id(subject)] = subject  # its number is not given away again
        place = id(subject), cls, field
        self.threads[place].add(threading.current_thread().name)
        if is_set or isinstance(value, CHANGEABLE):
            self.changed.add(place)

    def shared(self) -> set[tuple[str, str]]:
        """Classes and fields that change, and that two threads have touched."""
        return {
            (cls, field)
            for (number, cls, field) in self.changed
            if len(self.threads[number, cls, field]) > 1
        }


def classes() -> Iterator[tuple[str, type]]:
    """All classes of the daemon whose fields can be set, by their name in the table."""
    for found in pkgutil.walk_packages(reconciler.__path__, "reconciler."):
        room = found.name.split(".")[1]
        if room not in ROOMS:
            continue
        module = importlib.import_module(found.name)
        for cls in vars(module).values():
            if isinstance(cls, type) and cls.__module__ == found.name:
                is_frozen = getattr(cls, "__dataclass_params__", None)
                is_value = issubclass(cls, tuple | frozenset)  # set once, where it is made
                if not is_frozen and "__slots__" not in vars(cls) and not is_value:
                    yield f"{found.name.removeprefix('reconciler.')}.{cls.__name__}", cls


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    made = Record()
    for name, cls in classes():
        if issubclass(cls, BaseException):
            continue

        def read(self: Any, field: str, cls: str = name) -> Any:
            value = object.__getattribute__(self, field)
            if made.is_on and field in object.__getattribute__(self, "__dict__"):
                made.note(self, cls, field, value, is_set=False)
            return value

        def write(self: Any, field: str, value: Any, cls: str = name) -> None:
            made.note(self, cls, field, value, is_set=True)
            object.__setattr__(self, field, value)

        monkeypatch.setattr(cls, "__getattribute__", read)
        monkeypatch.setattr(cls, "__setattr__", write)
    return made


@pytest.fixture
def running(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """A daemon in its threads, all of whose objects are recorded."""
    monkeypatch.setattr(schedule, "RETRY_S", 0.05)
    monkeypatch.setattr(requests, "POOL_PASS_S", 0.05)
    monkeypatch.setattr(cluster, "LOOK_S", 0.05)
    monkeypatch.setattr(cluster, "OFF_S", 0.05)
    made = House(tmp_path)
    made.start(api=InMemory(Objects()), node_name="node-1")
    made.disturb()
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    thread = threading.Thread(target=made.agent.run, name="kernel loop")
    record.is_on = True
    thread.start()
    try:
        yield made
    finally:
        record.is_on = False
        made.agent.stop()
        thread.join()
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def test_no_field_that_two_threads_of_the_daemon_touch_is_missing_from_the_table(
    record: Record, running: House
) -> None:
    agent = running.agent
    running._path.write_text(f"{running._path.read_text()}kubernetes: {{report: true}}\n")
    for _ in range(3):
        assert is_served(running)
        planned, generation = agent.pool.report, agent.status()["document"]["generation"]
        running._path.write_text(f"{running._path.read_text()}# {generation}\n")
        agent.parts.document.reader.hints.mark("document")
        agent.parts.hints.mark("kernel")
        agent.find_obstacle()
        agent.reporter.refusals.note("default/web", "u-1", Issue("pod", "NotSettled", "it waits"))
        agent.parts.checks.check(intent(running._pods).key)
        agent.parts.pods.release(intent(running._pods - 1).key)
        until(lambda g=generation: agent.status()["document"]["generation"] > g)
        until(lambda before=planned: agent.pool.report is not before, "a pass over the pool")
    objects = agent.reporter._api.objects
    until(lambda: objects.condition and objects.events, "what the cluster is told")
    record.is_on = False
    known = {(row.cls, field) for row in TABLE if row.lock != ONE for field in row.fields}
    assert record.shared() - known == set()
    assert len(record.shared()) > 25, "too little was brought about"
