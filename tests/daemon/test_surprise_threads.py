"""Whatever a duty of a thread raises, the thread goes on; an ADD in vain is told so soon."""

from __future__ import annotations

import errno
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from builders import intent
from daemon.test_surprise import DOCUMENT, RESTING, House, begun
from waiting import PATIENCE_S, until

from reconciler.core.attachment import (
    Attachment,
    AttachmentKey,
    Cooling,
    IntentState,
)
from reconciler.core.datapath import MAIN_TABLE
from reconciler.daemon import agent as daemon
from reconciler.daemon import (
    duty,
    kernel_loop,
    pool_loop,
    requests,
    schedule,
    server,
    triggers,
)
from reconciler.domains.link import PodLink
from reconciler.domains.route import Route
from reconciler.engine.backoff import Delays

ESSENTIAL = ["kernel._publish", "parts.hints.wait"]
"""Steps without which no new pod can be served."""

STEPS = [
    "kernel.pods_pass",
    "kernel._serve",
    "kernel.full_pass",
    "schedule.due_s",
    "schedule.is_audit_due",
    "schedule.share_due_s",
    "schedule.next_pass_s",
    "kernel._take_document",
    "kernel._run_checks",
    "kernel._tell_pool",
    "kernel._tidy",
    "pool.run_pass",
    "pool._await_hint",
    "sources._run",
    "sources.hints.wait",
    "parts.document.reader.look_again",
    "parts.document.keep",
    "parts.pool_hints.wait",
    "parts.drift.book",
    "parts.drift.book_pods",
    "node.kernel_pass",
    "node.pods_pass",
    "node.after.takeover.run",
    "node.after.others.run",
    "node.after.installation.run",
    "node.after.inspection.run",
    "node.pool.run",
    "node.cooldowns.turn",
    "node.cooldowns.wait",
    "netlink.removals.wait",
    "neighbours.turn",
    "state.sweep",
    "ec2.drain",
]
"""All others that the threads of the daemon take."""


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    return begun(tmp_path, monkeypatch)


@pytest.fixture
def running(house: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """The same daemon, in its threads."""
    for module, name, value in (
        (duty, "BACKOFF_S", Delays(0.001, 0.01)),
        (schedule, "RETRY_S", 0.05),
        (pool_loop, "POOL_BACKOFF_S", Delays(0.001, 0.01)),
        (requests, "POOL_PASS_S", 0.05),
        (kernel_loop, "TIDY_S", 0.05),
        (daemon, "WATCHES_S", 0.05),
        (daemon, "READING_S", 0.05),
    ):
        monkeypatch.setattr(module, name, value)
    house.start()
    house.earlier = frozenset(threading.enumerate())
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    thread = threading.Thread(target=house.agent.run)
    thread.start()
    try:
        yield house
    finally:
        house.agent.stop()
        thread.join()
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def find(house: House, path: str) -> tuple[Any, str]:
    first, *parts, name = path.split(".")
    agent = house.agent
    known = {
        "kernel": agent.kernel,
        "pool": agent.pool,
        "sources": agent.sources,
        "neighbours": agent.neighbours,
        "parts": agent.parts,
        "node": agent.parts.node,
        "schedule": schedule,
    }
    owner = known.get(first) or getattr(house, first)
    for part in parts:
        owner = getattr(owner, part)
    return owner, name


def is_served(house: House) -> bool:
    house.begin_pod()
    outcome = house.agent.parts.requests.await_attachment(intent(house._pods).key, PATIENCE_S)
    return isinstance(outcome, Attachment)


def stir(house: House) -> bool:
    """Bring about every duty there is."""
    house.agent.parts.document.reader.hints.mark("document")
    house._path.write_text(f"{DOCUMENT}# {time.monotonic()}\n")
    house.agent.parts.node.cooldowns.review([Cooling(RESTING, time.monotonic())])
    house.agent.parts.pods._differing.add(intent(house._pods).key)
    house.agent.parts.checks._asked.add(intent(house._pods).key)
    for hint in ("kernel", "intent"):
        house.agent.parts.hints.mark(hint)
    house.netlink.removals.take(1, "nn1")
    house.agent.parts.pool_hints.mark("pool")
    house.agent.sources.hints.mark("document")
    return True


@pytest.mark.parametrize("path", [*ESSENTIAL, *STEPS])
def test_whatever_a_duty_raises_no_thread_ends_and_a_condition_names_it_until_it_is_over(
    running: House, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_served(running)
    # The loops of a daemon that a test before this one stopped may still be ending.
    threads = {t for t in threading.enumerate() if t.name in THREADS} - running.earlier
    assert {t.name for t in threads} == THREADS
    owner, name = find(running, path)
    calls: list[None] = []

    def is_stirred() -> bool:
        return path == "kernel._tidy" or stir(running)  # that is done once it is calm

    def raising(*_: Any, **__: Any) -> Any:
        calls.append(None)
        time.sleep(0.001)  # the interpreter is for the others, too
        raise KeyError(path)

    with monkeypatch.context() as broken:
        broken.setattr(owner, name, raising)
        stir(running)
        if path in STEPS:
            assert is_served(running)
        until(lambda: is_stirred() and calls, "a call")
        # A pass of the other kind may have ended it before it was looked for: then once more.
        conditions = running.agent.parts.conditions
        until(lambda: is_stirred() and any(path in c["text"] for c in conditions.all()))
        assert all(t.is_alive() for t in threads)
    until(lambda: is_stirred() and not running.errors())
    assert is_served(running)
    assert all(t.is_alive() for t in threads)


def share_a_namespace(house: House) -> AttachmentKey:
    """Ask for a second interface in the namespace of the pod that was served last."""
    house.begin_pod()
    late = intent(house._pods)
    first = intent(house._pods - 1)
    house.state.put(replace(late, netns=first.netns, netns_inode=first.netns_inode))
    return late.key


def lead_elsewhere(house: House) -> AttachmentKey:
    """Ask for an interface in a namespace that has another owner's default route."""
    house.begin_pod()
    late = intent(house._pods)
    netns = f"{late.netns}@{late.netns_inode}"
    house.netlink.replace(Route(netns, MAIN_TABLE, ip_network("0.0.0.0/0"), "net1", protocol=3))
    return late.key


def occupy_the_name(house: House) -> AttachmentKey:
    """Ask for an interface that another owner has put there already."""
    house.begin_pod()
    late = intent(house._pods)
    house.netlink.replace(PodLink(f"{late.netns}@{late.netns_inode}", "eth0", "02:11::2", 1500))
    return late.key


@pytest.mark.parametrize(
    ("ask", "reason", "code"),
    [
        (share_a_namespace, "NetnsTaken", 105),
        (lead_elsewhere, "ObjectExists", 106),
        (occupy_the_name, "InterfaceExists", 102),
    ],
)
def test_an_add_that_can_never_succeed_is_refused_long_before_its_time_is_over(
    running: House, ask: Callable[[House], AttachmentKey], reason: str, code: int
) -> None:
    assert is_served(running)
    key = ask(running)
    told: list[Any] = []
    waits = threading.Thread(
        target=lambda: told.append(running.agent.parts.requests.await_attachment(key, 110.0)),
        daemon=True,
    )
    waits.start()
    until(lambda: told)
    assert told[0].reason == reason
    assert server._result(told[0], running.agent)["code"] == code
    assert is_served(running)


THREADS = {
    *("pool", "reader", "watches", "cooldowns", "links", "others", "sources", "cluster"),
    "watchdog",
}


def test_no_free_inotify_instance_is_a_condition_and_the_daemon_serves_pods(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Any:
        raise OSError(errno.EMFILE, "inotify instance limit reached")

    monkeypatch.setattr(triggers, "Observer", refuse)
    house.start(events=True)
    thread = threading.Thread(target=house.agent.run)
    thread.start()
    try:
        assert is_served(house)
        until(lambda: "Watch" in {c["reason"] for c in house.agent.parts.conditions.all()})
    finally:
        house.agent.stop()
        thread.join()
        gc.unfreeze()


def test_a_pods_link_is_deleted_beside_the_loop(
    running: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_served(running)
    removals, by = running.netlink.removals, []
    delete = removals._delete

    def note(index: int) -> None:
        by.append(threading.current_thread().name)
        delete(index)

    monkeypatch.setattr(removals, "_delete", note)
    gone = intent(running._pods, IntentState.RELEASED)
    running.state.put(gone)
    running.agent.parts.pods.release(gone.key)
    record = (Attachment.kind, gone.key)
    until(lambda: record not in running.state._records, "the release")
    assert set(by) == {"links"}, "by another thread"


def test_the_end_of_a_pods_link_is_told_to_the_loop(house: House) -> None:
    house.start()
    hints, removals = house.agent.parts.hints, house.netlink.removals
    (apart,) = (a for a in house.agent._apart if a.work is removals)
    removals.apart = True
    assert removals.take(1, "nn1")
    hints.wait(0.0)
    house.agent._take_turn(apart)
    assert "intent" in hints.wait(0.0)
