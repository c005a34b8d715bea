"""Whatever a duty of a thread raises, the thread goes on; an ADD in vain is told so soon."""

from __future__ import annotations

import ast
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
    cluster,
    duty,
    kernel_loop,
    pool_loop,
    requests,
    schedule,
    server,
    triggers,
)
from reconciler.daemon.threads import THREADS as TABLE
from reconciler.domains.link import PodLink
from reconciler.domains.route import Route
from reconciler.engine.backoff import Delays

ESSENTIAL = {
    "kernel._publish": "the answers to pods",
    "parts.hints.wait": "the kernel loop",
}
"""Steps without which no new pod can be served, and the duty or the loop of each."""

STEPS = {
    "kernel.pods_pass": "serving pods",
    "kernel._serve": "serving pods",
    "kernel.full_pass": "the kernel loop",
    "kernel._take_document": "taking over the document",
    "kernel._run_checks": "serving pods",
    "kernel._tell_pool": "waking the pool",
    "kernel._tidy": "tidying up",
    "kernel._ledger.follow": "what is expected of the kernel",
    "schedule.due_s": "the schedule of passes",
    "schedule.is_audit_due": "the schedule of audits",
    "schedule.share_due_s": "the schedule of looks into pods",
    "schedule.next_pass_s": "the next pass's time",
    "pool.run_pass": "the pool loop",
    "pool._await_hint": "the pool loop",
    "pool._look_out": "the pool's outlook",
    "pool._find_margin": "the pool's margin",
    "sources._run": "asking what sources stand for",
    "sources.hints.wait": "the loop of sources",
    "reporter._take_settings": "telling the cluster",
    "parts.document.reader.look_again": "reading the document",
    "parts.document.reader.hints.wait": "the document's reader",
    "parts.document.keep": "keeping the document",
    "parts.document.describe_wanted": "describing the document",
    "parts.pool_hints.wait": "the pool loop",
    "parts.drift.book": "the pool's books of drift",
    "parts.drift.book_pods": "the books of drift",
    "node.kernel_pass": "the pass over everything",
    "node.pods_pass": "the pass over some pods",
    "node.after.takeover.run": "taking over from the stock plugin",
    "node.after.others.run": "the look at other owners",
    "node.after.fast_path.run": "the fast path",
    "node.after.fast_path.follow": "the fast path",
    "node.after.installation.run": "the installation",
    "node.after.inspection.run": "the look into pods",
    "node.check": "check",
    "node.pool.run": "the pass over the pool",
    "node.cooldowns.turn": "the cooldowns loop",
    "node.cooldowns.wait": "the cooldowns loop",
    "netlink.removals.turn": "the links loop",
    "netlink.removals.wait": "the links loop",
    "netlink.learnt.observe": "asking for neighbours again",
    "nft.count": "the counters of packets",
    "surroundings.latest.turn": "the others loop",
    "surroundings.latest.wait": "the others loop",
    "neighbours.turn": "asking for neighbours again",
    "state.reclaim": "keeping the state directory",
    "state.sweep": "sweeping the records",
    "ec2.drain": "taking note of EC2's answers",
}
"""All others that the threads of the daemon take."""

SELDOM = {
    "kernel._ledger.weigh": "weighing what the kernel tells",
    "kernel_loop._look_into_some": "some pods' namespaces",
    "watch.keep": "an odd watch",
    "upkeep.is_own": "looking for the state directory",
}
"""Those that are due when nothing else is: they are called one by one."""

ELSEWHERE = {
    "an answer on the socket": "test_server",
    "a request to ": "test_listener",
    "the check of ": "what the watchdog calls a step of those above",
    "the conditions": "nothing is told where that fails, and test_duty has it",
    "the conditions of the state directory": "likewise",
    "the watches' loop": "all it does is a duty, of those above",
    "the loop that tells the cluster": "likewise",
}
"""Duties and loops that these tests do not let fail, and where or why."""

BESIDES = {
    "N": "test_kernel_watch",
    "F": "test_triggers",
    "S": "test_listener",
    "H": "test_health",
    "X": "test_server",
    "T": "test_ec2_caller",
    "G": "it sets an event",
    "L": "test_logs",
}
"""Threads that this daemon does not start, by the letter in the table of threads."""

THREADS = {text.partition(":")[0] for letter, text in TABLE.items() if letter not in BESIDES}


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
        (cluster, "OFF_S", 0.05),
    ):
        monkeypatch.setattr(module, name, value)
    house.start()
    house.earlier = frozenset(threading.enumerate())
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    thread = threading.Thread(target=house.agent.run, name="MainThread")
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
        "reporter": agent.reporter,
        "parts": agent.parts,
        "node": agent.parts.node,
        "schedule": schedule,
    }
    owner = known.get(first) or getattr(house, first)
    for part in parts:
        owner = getattr(owner, part)
    return owner, name


def is_told(house: House, path: str, duty: str) -> bool:
    conditions = house.agent.parts.conditions.all()
    return any(path in c["text"] and c["subject"] == duty for c in conditions)


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
    house.surroundings.latest._asked.set()
    house.agent.parts.node.after.fast_path.is_on = True
    house.agent.parts.pool_hints.mark("pool")
    house.agent.sources.hints.mark("document")
    return True


@pytest.mark.parametrize(("path", "named"), [*ESSENTIAL.items(), *STEPS.items()])
def test_whatever_a_duty_raises_no_thread_ends_and_a_condition_names_it_until_it_is_over(
    running: House, path: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_served(running)
    # The loops of a daemon that a test before this one stopped may still be ending.
    threads = set(threading.enumerate()) - running.earlier
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
        until(lambda: is_stirred() and is_told(running, path, named))
        assert all(t.is_alive() for t in threads)
    until(lambda: is_stirred() and not running.errors())
    assert is_served(running)
    assert all(t.is_alive() for t in threads)


def duties_of(agent: daemon.Agent) -> set[str]:
    """All duties and loops there are, as the code of the daemon names them."""
    found = {name for name, _ in agent.parts.node.after}
    found |= {f"the {each.thread} loop" for each in agent._apart}
    for path in Path(daemon.__file__).parent.glob("*.py"):
        module = sys.modules.get(f"reconciler.daemon.{path.stem}")
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                place = {"over": 0, "forever": 0, "heard": 0, "_start": 1}.get(call.func.attr)
                if place is not None:
                    found |= texts_of(call.args[place], module)
    return found


def texts_of(name: ast.expr, module: Any) -> set[str]:
    """What a duty is called, as far as its expression says; the rest is asked of the daemon."""
    match name:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]) if text != "the ":
            return {text}
        case ast.Name(id=constant) if constant.isupper():
            return {getattr(module, constant)}
    return set()


def test_every_duty_every_loop_and_every_thread_there_is_is_let_fail(house: House) -> None:
    tried = {*ESSENTIAL.values(), *STEPS.values(), *SELDOM.values(), *ELSEWHERE}
    assert duties_of(house.agent) - tried == set()
    assert set(ELSEWHERE) - duties_of(house.agent) == set()
    assert BESIDES.keys() <= TABLE.keys()


class Odd:
    """A watch, and a property of the daemon."""

    name = SELDOM["watch.keep"]
    fails = True

    def keep(self) -> None:
        if self.fails:
            raise KeyError("watch.keep")

    @property
    def is_own(self) -> bool:
        if self.fails:
            raise KeyError("upkeep.is_own")
        return True


def test_what_is_seldom_due_fails_alone_too(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, odd = house.agent.kernel, Odd()
    monkeypatch.setattr(house.agent, "_watches", (odd,))
    house.agent.upkeep.properties.append(odd)  # type: ignore[arg-type]
    monkeypatch.setattr(kernel, "_due_s", lambda hints: float(not hints))
    monkeypatch.setattr(kernel_loop, "_share_due_s", lambda *_: 0.0)
    house.agent.parts.stopping.set()  # so that no turn waits

    def turn() -> None:
        house.agent._keep_watches()
        kernel._hints = frozenset()
        kernel.turn()
        kernel._do_lightly(frozenset({"kernel"}))

    with monkeypatch.context() as broken:
        for owner, name in ((kernel._ledger, "weigh"), (kernel_loop, "_look_into_some")):
            broken.setattr(owner, name, raising_what_it_is(name))
        turn()
        assert [
            p for p, duty in SELDOM.items() if not is_told(house, p.split(".")[-1], duty)
        ] == []
    odd.fails = False
    turn()
    assert house.errors() == set()


def raising_what_it_is(name: str) -> Callable[..., Any]:
    def raising(*_: Any, **__: Any) -> Any:
        raise KeyError(name)

    return raising


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
