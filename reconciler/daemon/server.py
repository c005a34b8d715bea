"""The Unix socket: the CNI executable waits here, and ``status`` asks here.

One JSON object on one line each way, one exchange per connection. The socket carries questions
only; what is wanted was written to the state directory before.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cni import protocol
from reconciler.core.attachment import Attachment, AttachmentKey, netns_path
from reconciler.core.datapath import family_of, host_network
from reconciler.daemon import telemetry
from reconciler.daemon.agent import Agent
from reconciler.daemon.listener import Bounds, Listener, Workers
from reconciler.daemon.status import shorten
from reconciler.daemon.unix_socket import Place, find_place, listen
from reconciler.errors import InternalError, Issue, ReconcilerError, boundary
from reconciler.targets.netlink.namespaces import own_namespace

log = logging.getLogger(__name__)

CODES = {
    "AlreadyAttached": protocol.ALREADY_ATTACHED,
    "InterfaceExists": protocol.INTERFACE_EXISTS,
    "ObjectExists": protocol.OBJECT_EXISTS,
    "NetnsTaken": protocol.NETNS_TAKEN,
    "NotAttached": protocol.UNKNOWN_CONTAINER,
    "Differs": protocol.KERNEL_DIFFERS,
    "ForeignObject": protocol.KERNEL_DIFFERS,
    "NotAvailable": protocol.NOT_AVAILABLE,
    "Limited": protocol.LIMITED,
}
"""What the executable says, by reason; for all others there is a point in trying again later."""

MALFORMED = (ValueError, KeyError, TypeError, OverflowError, RecursionError)
"""What a question raises that is none."""

OF_A_POD = frozenset({"add", "del", "check", "release"})
"""Questions about one pod's attachment; they are logged."""

ANSWERING = "an answer on the socket"  # the duty, as conditions and the watchdog name it
BOUNDS = Bounds(connections=1024, request_bytes=65536, request_s=10.0, answer_s=10.0, grace_s=0.1)
"""A node's pods may all ask at once, and each waits on its connection. The executable connects,
writes its intent to the disk, and then asks, with some hundred bytes; ``release`` has an intent in
it, of some kilobytes."""

GROUP_BOUNDS = Bounds(
    connections=16, request_bytes=4096, request_s=2.0, answer_s=10.0, grace_s=0.1
)
"""Of a group's socket. It takes no place from pods: its connections and threads are its own."""

GROUPS = ("the group's socket", GROUP_BOUNDS)

AT_ONCE = {"add": 768, "check": 64, "status": 4}
"""Questions of a kind that may be under way, each in a thread of its own. No instance has more
than 737 pods, and 768 threads that wait take some 15 MB; an answer to ``status`` is the only large
one."""

OTHERS_AT_ONCE = 32  # the same for all other kinds together: they wait for nothing

MAX_ANSWER, FRAME = 1 << 20, 64
"""Bytes of an answer: what the executable and ``node-network status`` read of one; and of what is
around a status in it."""

LONGEST_BUDGET_S = 110.0  # seconds; kubelet gives a sandbox two minutes

Reply = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked."""

    do: str
    body: dict[str, Any]  # all of it; what ``do`` needs was checked
    began: float  # monotonic seconds at which it was here

    @classmethod
    def parse(cls, line: bytes) -> Question:
        """Read a question.

        Raises:
            Any of ``MALFORMED``: it cannot be understood.
        """
        if len(line) > BOUNDS.request_bytes:
            raise ValueError(f"it has more than {BOUNDS.request_bytes} bytes")
        body = json.loads(line)
        found = cls(str(body["do"]), body, time.monotonic())
        if found.do in OF_A_POD:
            body["containerID"], body["ifname"]
        if not 0 < found.budget_s <= LONGEST_BUDGET_S:
            raise ValueError(f"budgetSeconds {found.budget_s}")
        return found

    @property
    def key(self) -> AttachmentKey:
        """The attachment that it is about, if it is about one."""
        return AttachmentKey(str(self.body["containerID"]), str(self.body["ifname"]))

    @property
    def budget_s(self) -> float:
        """Seconds that an ADD waits at most."""
        return float(self.body.get("budgetSeconds", 30)) if self.do == "add" else 30.0


class Server:
    """Answers on one socket path, each question in a thread of its own.

    Only root may connect: the socket's mode is 0600. Members of a ``group`` may connect to a
    server that was given one, which answers ``status`` and nothing else.

    Raises:
        StateError: the socket cannot be made.
    """

    def __init__(self, path: Path, agent: Agent, group: int | None = None) -> None:
        self._agent, self._path, self._group = agent, path, group
        self._workers = Workers()
        self._listener, self._place = self._open()

    def _open(self) -> tuple[Listener, Place]:
        listener: Listener

        def take(connection: socket.socket, line: bytes) -> bytes | None:
            return self._take(listener, connection, line)

        duties, listening = self._agent.parts.duties, listen(self._path, self._group)
        name, bounds = ("the socket", BOUNDS) if self._group is None else GROUPS
        listener = Listener(name, listening, bounds, lambda b: b"\n" in b, take, duties)
        return listener, find_place(self._path)

    def start(self) -> None:
        """Begin to answer."""
        self._listener.start()

    @property
    def is_own(self) -> bool:
        """Whether the socket's path leads here."""
        return find_place(self._path) == self._place

    def reclaim(self) -> tuple[Issue, ...]:
        """Listen again if the socket's path does not lead here; say so.

        The lock must be held: another reconciler's socket would be taken away.

        Raises:
            StateError: the socket cannot be made.
        """
        if self.is_own:
            return ()
        before = self._listener
        listener, place = self._open()
        try:
            listener.start()
        except RuntimeError:  # no thread can be started: next time again
            listener.stop()
            raise
        self._listener, self._place = listener, place
        before.stop()
        who = "no pod could ask for its network" if self._group is None else "none could ask"
        message = (
            f"it was removed or replaced by another program, so that {who}; it is made again. "
            "Find out who removes it"
        )
        return (Issue(f"socket {self._path}", "SocketReplaced", message),)

    def stop(self) -> None:
        """End answering; what is under way is finished by its own thread."""
        self._listener.stop()
        self._workers.stop()
        if self.is_own:  # or else it is another reconciler's
            self._path.unlink(missing_ok=True)

    def _take(self, listener: Listener, connection: socket.socket, line: bytes) -> bytes | None:
        """Give a question to a thread; refuse what is none, and what is too much at once."""
        try:
            question = Question.parse(line)
        except MALFORMED as error:
            why = "the request cannot be understood"
            return encode(refuse(protocol.DECODING_FAILURE, why, error))
        do = question.do
        if self._group is not None and do != "status":
            why = "this socket answers status alone; ask the other one as root"
            return encode(refuse(protocol.DECODING_FAILURE, why, do))
        kind, most = (do, AT_ONCE[do]) if do in AT_ONCE else ("other", OTHERS_AT_ONCE)

        def exchange() -> None:
            try:
                with self._agent.parts.duties.over(ANSWERING, slow=True):
                    self._exchange(connection, question)
            finally:
                listener.close(connection)

        try:
            if self._workers.run(kind, most, exchange):
                return None
            message = f"{most} questions of this kind are under way"
        except RuntimeError as error:  # EAGAIN in pthread_create(3)
            message = f"the reconciler: {error}: its pids cgroup or the host has as many as it may"
        return encode(refuse(protocol.TRY_AGAIN, message, do))

    def _exchange(self, connection: socket.socket, question: Question) -> None:
        """Answer one question; also if that fails in a way that no code expects."""
        surprise: InternalError | None = None
        try:
            with boundary(ANSWERING):
                reply = answer(self._agent, question)
        except ReconcilerError as error:
            surprise = error if isinstance(error, InternalError) else None
            reply = refuse_for(Issue("the reconciler", type(error).__name__, str(error)))
        ready_at = time.monotonic()
        told = _say(connection, reply)
        if question.do == "add" and reply["ok"] and not told:
            self._agent.parts.requests.disclaim(question.key)
        if question.do in OF_A_POD:
            _tell(question, reply, ready_at, told=told)
        if surprise is not None:
            raise surprise  # to be a condition


def _say(connection: socket.socket, reply: Reply) -> bool:
    """Write the answer; return whether the other side was still there to take it.

    If not, its intent says what it wanted.
    """
    connection.settimeout(BOUNDS.answer_s)
    try:
        connection.sendall(encode(reply))  # the timeout is for all of it
    except OSError:
        return False
    return True


def _tell(question: Question, reply: Reply, ready_at: float, *, told: bool) -> None:
    """Count an answer that was ready at these monotonic seconds, and log it."""
    outcome, now = "ok" if reply["ok"] else str(reply.get("reason", "Refused")), time.monotonic()
    if not told and question.do != "del":  # which leaves only a hint, and does not wait
        outcome = "client_gone"
    telemetry.count_request(question.do, outcome, now - question.began)
    fields: dict[str, Any] = {"key": question.key}
    fields |= {name: question.body.get(name, "") for name in ("pod", "trace", "attempt")}
    fields |= {"outcome": outcome, "ms": round((now - question.began) * 1000, 1)}
    if question.do == "add" and outcome == "ok":
        telemetry.ADD_SECONDS.labels("answer").observe(now - ready_at)
        given = [str(ip["address"]).partition("/")[0] for ip in reply["ips"]]
        fields |= {"addresses": " ".join(given), "veth": reply["interfaces"][0]["name"]}
    log.info("%s answered", question.do, extra=fields)


# -- answers --------------------------------------------------------------------------------------


def answer(agent: Agent, question: Question) -> Reply:
    """Answer a question."""
    parts = agent.parts
    match question.do:
        case "add":
            return _answer_add(agent, question)
        case "del":
            parts.pods.release(question.key)  # it is on disk: there is nothing to wait for
            return {"ok": True}
        case "release":
            try:
                parts.node.state.hand_over(question.body["intent"])
            except MALFORMED as error:
                return refuse(protocol.DECODING_FAILURE, "it is no release", error)
            parts.pods.release(question.key)
            return {"ok": True}
        case "check":
            return _result(parts.checks.check(question.key), agent)
        case "ready":
            obstacle = agent.find_obstacle()
            return refuse_for(obstacle, protocol.NOT_AVAILABLE) if obstacle else {"ok": True}
        case "status":
            return {"ok": True, "status": shorten(agent.status(), MAX_ANSWER - FRAME)}
        case "retry":
            for hints in (parts.hints, parts.pool_hints, agent.sources.hints):
                hints.mark("retry")
            return {"ok": True}
        case other:
            return refuse(protocol.DECODING_FAILURE, f"unknown request {other!r}", "")


def _answer_add(agent: Agent, question: Question) -> Reply:
    requests, key = agent.parts.requests, question.key
    attempt = str(question.body.get("attempt", ""))
    # Of this thread: the one that the process is known by is in a pod's namespace now and then.
    if question.body.get("netnsInode") == own_namespace()[1]:
        message = "CNI_NETNS is the reconciler's own namespace"
        why = "the host would lose its own network"
        return refuse(protocol.INVALID_ENVIRONMENT, message, why)
    message = "it has its interface already, and keeps it; a DEL for it comes first"
    already = Issue(f"attachment {key}", "AlreadyAttached", message)
    if question.body.get("again") is True and requests.was_answered(key, attempt):
        requests.disclaim(key)  # what an earlier process answered to this ADD has not come
    # First: a runtime that hears of another failure deletes what the first ADD was given.
    outcome: Attachment | Issue = already
    if not requests.was_answered(key, attempt):
        outcome = requests.await_attachment(key, question.budget_s)
        if isinstance(outcome, Attachment) and not requests.claim(key, attempt):
            outcome = already
    if isinstance(outcome, Issue):
        pod, uid = (str(question.body.get(name, "")) for name in ("pod", "uid"))
        outcome = agent.parts.conditions.named(outcome)
        if pod and pod not in outcome.subject:
            outcome = replace(outcome, subject=f"{outcome.subject} of pod {pod}")
        agent.reporter.refusals.note(pod, uid, outcome)
    return _result(outcome, agent)


def _result(attachment: Attachment | Issue, agent: Agent) -> Reply:
    """Return what the pod was given, in the terms of a CNI result, or why it was not."""
    if isinstance(attachment, Issue):
        return refuse_for(attachment)
    mtu = agent.parts.document.current.pod_mtu  # there is one: something was given by it
    # kubelet takes the pod's addresses from here: only those that others can reach it by.
    pairs = [(a, family_of(a)) for a in attachment.vpc_addresses]
    host = {"name": attachment.veth, "mac": attachment.host_mac, "mtu": mtu, "sandbox": ""}
    pod = {"name": attachment.key.ifname, "mac": attachment.pod_mac, "mtu": mtu}
    return {
        "ok": True,
        "interfaces": [host, pod | {"sandbox": netns_path(attachment.netns)}],
        "ips": [
            {"address": str(host_network(a)), "gateway": str(family.gateway), "interface": 1}
            for a, family in pairs
        ],
        "routes": [{"dst": str(f.everything), "gw": str(f.gateway)} for _, f in pairs],
        "dns": {},
    }


def refuse_for(refusal: Issue, otherwise: int = protocol.TRY_AGAIN) -> Reply:
    """Answer that something is not done, with its reason; ``otherwise`` if that has no code."""
    code = CODES.get(refusal.reason, otherwise)
    reply = refuse(code, f"{refusal.reason}: {refusal.message}", refusal.subject)
    return reply | {"reason": refusal.reason}


def refuse(code: int, message: str, details: object) -> Reply:
    """Answer with an error of the CNI specification or of ours."""
    return {"ok": False, "code": code, "msg": message, "details": str(details)}


def encode(reply: Reply) -> bytes:
    """Return an answer as its line on the socket."""
    return json.dumps(reply).encode() + b"\n"
