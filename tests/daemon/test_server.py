"""The socket, with an agent of which nothing is asked but its answer."""

from __future__ import annotations

import json
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import attachment
from conftest import namespace
from waiting import until

from cni import protocol
from lab import netns
from reconciler.daemon import client, server, telemetry
from reconciler.daemon.client import ask
from reconciler.daemon.duty import Conditions, Duties, Watchdog
from reconciler.daemon.listener import SPARE_THREADS, Workers
from reconciler.daemon.server import (
    AT_ONCE,
    BOUNDS,
    MAX_ANSWER,
    OTHERS_AT_ONCE,
    Server,
)
from reconciler.errors import StateError, UnansweredError


class Agent:
    """Has done whatever it is asked for."""

    pod_mtu = 1500

    def __init__(self) -> None:
        self.parts = self.requests = self.pods = self.document = self.current = self
        self.reporter = self.refusals = self
        self.watchdog = Watchdog(lambda _: None)
        self.conditions = Conditions()
        self.duties = Duties(self.conditions, self.watchdog)
        self.waiting = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self.running = 1
        self.released = 0
        self.told = {"told before"}

    def was_answered(self, _: Any, attempt: str) -> bool:
        return attempt in self.told

    def await_attachment(self, *_: Any) -> Any:
        self.waiting += 1
        assert self.go_on.wait(60)
        return attachment(1)

    def claim(self, *_: Any) -> bool:
        return True

    def disclaim(self, *_: Any) -> None:
        assert self.told, "it was told"
        self.told.clear()

    def release(self, _: Any) -> None:
        self.released += 1

    def note(self, *_: Any) -> None:
        """Take note of an ADD that was refused."""

    def find_obstacle(self) -> None:
        return None

    def status(self) -> dict[str, Any]:
        one = {
            "pod": "n" * 63 + "/" + "p" * 253,
            "addresses": ["2001:db8::1"] * 2,
            "eni": "e" * 21,
        }
        return {
            "attachments": [one] * self.running,
            "conditions": [{"text": "x" * 256}] * self.running,
        }


@pytest.fixture
def agent() -> Agent:
    return Agent()


@pytest.fixture
def path(tmp_path: Path, agent: Agent) -> Iterator[Path]:
    """Where a server listens."""
    made = Server(tmp_path / "s", agent)  # type: ignore[arg-type]
    made.start()
    yield tmp_path / "s"
    made.stop()


def add(path: Path, inode: int = 1) -> Any:
    who = {"containerID": "c", "ifname": "eth0", "attempt": "1"}
    return ask(path, {"do": "add", "netnsInode": inode, **who})


def connect(path: Path) -> socket.socket:
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(10)
    s.connect(str(path))
    return s


def say(path: Path, text: bytes) -> Any:
    with connect(path) as s:
        with suppress(BrokenPipeError):
            s.sendall(text)
        return json.loads(s.makefile("rb").readline())


def test_an_add_whose_answer_was_lost_with_its_reconciler_is_told_again(path: Path) -> None:
    """The earlier process has finished it, and was killed before the answer arrived."""
    asked = {"do": "add", "netnsInode": 1, "containerID": "c", "ifname": "eth0"}
    asked["attempt"] = "told before"
    with pytest.raises(UnansweredError, match="AlreadyAttached"):
        ask(path, asked)
    assert ask(path, asked | {"again": True})["ok"]


@pytest.mark.kernel
def test_a_pods_namespace_is_not_ours_while_the_kernel_loop_is_in_it(path: Path) -> None:
    """The loop's thread is the one by which ``/proc/self`` knows the process."""
    with namespace("pod") as pod, netns.inside(pod):
        assert add(path, netns.path(pod).stat().st_ino)["ok"]
    own = Path("/proc/thread-self/ns/net").stat().st_ino
    with pytest.raises(UnansweredError, match="the reconciler's own namespace"):
        add(path, own)


def test_more_connections_than_spare_threads_are_all_answered(path: Path) -> None:
    for _ in range(5 * SPARE_THREADS):
        assert add(path)["ok"]


def test_only_root_may_connect(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_250_adds_at_once_all_wait_and_are_all_answered(path: Path, agent: Agent) -> None:
    agent.go_on.clear()
    with ThreadPoolExecutor(250) as runtimes:
        asked = [runtimes.submit(add, path) for _ in range(250)]
        until(lambda: agent.waiting == 250)
        assert ask(path, {"do": "ready"})["ok"], "others are answered meanwhile"
        agent.go_on.set()
        assert all(one.result()["ok"] for one in asked)


def test_questions_beyond_what_is_answered_at_once_are_refused_and_others_are_not(
    path: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(AT_ONCE, "add", 3)
    agent.go_on.clear()
    with ThreadPoolExecutor(4) as runtimes:
        asked = [runtimes.submit(add, path) for _ in range(3)]
        until(lambda: agent.waiting == 3)
        with pytest.raises(UnansweredError, match="3 questions of this kind are under way"):
            add(path)
        assert ask(path, {"do": "ready"})["ok"]
        agent.go_on.set()
        assert all(one.result()["ok"] for one in asked)

    def is_answered() -> bool:
        with suppress(UnansweredError):  # an answer is there before its place is free
            return bool(add(path)["ok"])
        return False

    until(is_answered)


def test_status_is_asked_again_while_the_threads_of_earlier_answers_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, busy = Workers.run, [False, False]
    monkeypatch.setattr(Workers, "run", lambda *words: busy.pop() if busy else run(*words))
    assert ask(path, {"do": "status"})["ok"]
    assert busy == []


def test_a_question_for_which_no_thread_can_be_started_is_refused_with_the_reason(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "start", start)
        with pytest.raises(UnansweredError, match="can't start new thread: its pids cgroup"):
            add(path)
    assert add(path)["ok"]


def test_threads_are_bounded_whatever_is_asked(path: Path, agent: Agent) -> None:
    before = threading.active_count()
    with ExitStack() as stack:
        for _ in range(4 * OTHERS_AT_ONCE):
            s = stack.enter_context(connect(path))
            s.sendall(b'{"do": "del", "containerID": "c", "ifname": "eth0"}\n')
        assert threading.active_count() <= before + OTHERS_AT_ONCE


@pytest.mark.parametrize(
    "text",
    [
        b"\n",
        b"\xff\n",
        b"[" * 60_000 + b"\n",
        b"x" * (BOUNDS.request_bytes + 10),
        b"[]\n",
        b'"do"\n',
        b'{"do": []}\n',
        b'{"do": "add"}\n',
        b'{"do": "add", "containerID": "c", "ifname": "e", "budgetSeconds": 1e999}\n',
        b'{"do": {"x": 1}, "containerID": 3}\n',
    ],
    ids=lambda t: repr(t[:20]),
)
def test_what_is_no_question_is_refused_and_costs_no_thread(
    path: Path, agent: Agent, text: bytes
) -> None:
    assert say(path, text)["code"] == 6
    assert agent.conditions.all() == []
    assert add(path)["ok"]


GROUP = 4711


def test_a_groups_socket_answers_status_and_nothing_else(tmp_path: Path, agent: Agent) -> None:
    made = Server(tmp_path / "g", agent, GROUP)  # type: ignore[arg-type]
    made.start()
    try:
        mode = (tmp_path / "g").stat()
        assert (stat.S_IMODE(mode.st_mode), mode.st_gid) == (0o660, GROUP)
        assert ask(tmp_path / "g", {"do": "status"})["ok"]
        for do in ("add", "del", "check", "release", "ready", "retry"):
            question = {"do": do, "containerID": "c", "ifname": "eth0"}
            with pytest.raises(UnansweredError, match="answers status alone"):
                ask(tmp_path / "g", question)
        assert (agent.waiting, agent.released) == (0, 0)
        (tmp_path / "g").unlink()
        (issue,) = made.reclaim()
        assert "none could ask" in issue.message
        assert ask(tmp_path / "g", {"do": "status"})["ok"]
    finally:
        made.stop()
    assert not (tmp_path / "g").exists()


def test_a_socket_that_a_group_cannot_be_given_is_none(tmp_path: Path, agent: Agent) -> None:
    with pytest.raises(StateError, match=r"cannot listen on .*/g: "):
        Server(tmp_path / "g", agent, 2**40)  # type: ignore[arg-type]


def test_the_status_of_700_pods_is_whole(path: Path, agent: Agent) -> None:
    agent.running = 700
    status = ask(path, {"do": "status"})["status"]
    assert (len(status["attachments"]), "shortened" in status) == (700, False)


def test_a_status_that_nobody_could_read_says_what_it_leaves_out(path: Path, agent: Agent) -> None:
    agent.running = 20_000
    status = ask(path, {"do": "status"})["status"]
    assert status["shortened"]["attachments"] == 20_000 - len(status["attachments"]) > 0
    assert len(json.dumps(status)) <= MAX_ANSWER


def test_whoever_does_not_read_the_status_keeps_it_from_few_and_not_for_long(
    path: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "BOUNDS", replace(BOUNDS, answer_s=0.5))
    agent.running = 1500
    with ExitStack() as stack:
        for _ in range(2 * AT_ONCE["status"]):
            stack.enter_context(connect(path)).sendall(b'{"do": "status"}\n')
        assert add(path)["ok"]
        until(lambda: _is_told(path))


def _is_told(path: Path) -> bool:
    try:
        return bool(ask(path, {"do": "status"})["ok"])
    except UnansweredError:
        return False


@pytest.mark.parametrize("drip", [b"x", b"x" * 65536], ids=["a byte now and then", "without end"])
def test_a_reconciler_that_answers_without_end_is_listened_to_for_a_bounded_time(
    tmp_path: Path, drip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TIMEOUT_S", 0.5)
    ended = threading.Event()

    def answer() -> None:
        with suppress(OSError), listener.accept()[0] as s:
            while not ended.wait(0.05 if len(drip) == 1 else 0):
                s.sendall(drip)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            with pytest.raises(UnansweredError, match=r"no answer within 0\.5 s|no end"):
                ask(tmp_path / "s", {"do": "status"})
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize(
    ("do", "method"), [("add", "await_attachment"), ("del", "release"), ("status", "status")]
)
def test_an_answer_that_fails_for_no_known_reason_is_told_as_that_and_is_a_condition(
    path: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch, do: str, method: str
) -> None:
    """Not as a question that cannot be understood: whoever asked has done nothing wrong."""

    def fail(*_: Any) -> Any:
        raise KeyError("surprise")

    question = json.dumps({"do": do, "containerID": "c", "ifname": "eth0"}).encode() + b"\n"
    with monkeypatch.context() as broken:
        broken.setattr(agent, method, fail)
        answer = say(path, question)
    assert (answer["ok"], answer["code"]) == (False, protocol.TRY_AGAIN)
    assert answer["msg"].startswith("InternalError: ")
    assert "surprise" in answer["msg"]
    until(lambda: [c["reason"] for c in agent.conditions.all()] == ["InternalError"])
    assert say(path, question)["ok"]
    until(lambda: agent.conditions.all() == [], "its end")


def sample(name: str, **labels: str) -> float:
    return telemetry.REGISTRY.get_sample_value(f"node_network_{name}", labels) or 0.0


def test_each_question_about_a_pod_is_counted_by_how_it_went_and_timed(path: Path) -> None:
    def counted() -> dict[str, float]:
        requests, seconds = "cni_requests_total", "cni_request_seconds_count"
        return {
            "granted": sample(requests, verb="add", result="ok"),
            "refused": sample(requests, verb="add", result="AlreadyAttached"),
            "left": sample(requests, verb="del", result="ok"),
            "timed": sample(seconds, verb="add", result="ok"),
            "in vain": sample(seconds, verb="add", result="failed"),
            "told": sample("cni_add_phase_seconds_count", phase="answer"),
        }

    before = counted()
    who = {"containerID": "c", "ifname": "eth0"}
    add(path)
    with pytest.raises(UnansweredError, match="AlreadyAttached"):
        ask(path, {"do": "add", "netnsInode": 1, "attempt": "told before", **who})
    ask(path, {"do": "del", **who})
    ask(path, {"do": "status"})

    def grown() -> dict[str, float]:
        return {k: n - before[k] for k, n in counted().items()}

    # Each is counted by its own thread, after its answer.
    until(lambda: grown() == dict.fromkeys(before, 1.0), lambda: str(grown()))
