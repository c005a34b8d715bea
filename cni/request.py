"""What the executable asks the reconciler, and how long it waits for one to answer."""

from __future__ import annotations

import os
import time

from cni import exchange, protocol
from cni.protocol import Call, CniError, Object

GRACE_S = 2.0  # seconds beyond the budget in which the reconciler's own refusal may still arrive
RETRY_S = 0.1  # seconds between two attempts to reach a reconciler that is starting
START_S = 10.0  # seconds a reconciler may take to start again, if the configuration does not say

CHECK_S = 10.0
"""Seconds in which the reconciler must say whether a pod is as it should be: it gives itself two,
and a node under load may take longer to come to it."""


def wait(call: Call, left_s: float) -> tuple[exchange.Connection, float]:
    """Connect as soon as a reconciler listens, if one is expected on this node.

    A rollout, a crash and a reboot leave the node without one for seconds, and a runtime that is
    refused makes a new sandbox only after its own backoff.

    Args:
        call: says how long a reconciler may take to start.
        left_s: seconds of the budget that are left.

    Returns:
        The connection, and the seconds that are left then.

    Raises:
        CniError: none listens in time, or this user may not ask it.
    """
    most_s, waited_s = min(_start_s(call), left_s), 0.0
    began = time.monotonic()
    while True:
        try:
            return connect(call), left_s - waited_s
        except CniError as error:
            if error.code != protocol.TRY_AGAIN:
                raise
            if waited_s + RETRY_S > most_s:
                details = f"{error.details}; waited {waited_s:.0f} s for it to start"
                raise CniError(error.code, error.msg, details) from error
        time.sleep(RETRY_S)
        waited_s = time.monotonic() - began


def connect(call: Call) -> exchange.Connection:
    """Return a connection to the reconciler.

    Raises:
        CniError: none listens, or this user may not ask it.
    """
    try:
        return exchange.connect(call.state_dir, exchange.CONNECT_S)
    except PermissionError as error:
        raise not_permitted(call, error) from error
    except OSError as error:
        what = f"{protocol.NOT_RUNNING}: the reconciler is not running on this node"
        details = f"{call.state_dir}/{exchange.SOCKET}: {protocol.why(error)}"
        raise CniError(protocol.TRY_AGAIN, what, details) from error


def _start_s(call: Call) -> float:
    """Return how many seconds a reconciler may take to start; 0 where none was ever there.

    The configuration that a reconciler installs says it, also after a reboot. Without that, the
    directory of its records shows that one has run since the node was booted.
    """
    if call.start_s:
        return call.start_s
    try:
        os.stat(f"{call.state_dir}/attachments")
    except OSError:
        return 0.0
    return START_S


def add(
    call: Call, connection: exchange.Connection, inode: int, left_s: float, *, is_own: bool
) -> Object:
    """Ask what a pod is given; if the reconciler ends meanwhile, ask the one that follows.

    The intent stays recorded, so the next process goes on with it, and the attempt is the same.
    It is asked ``again``: an answer that was on its way to this ADD was lost, and may not count.

    Args:
        call: whose attempt is asked for.
        connection: to the reconciler that listens now.
        inode: of the pod's namespace.
        left_s: seconds of the budget that are left.
        is_own: this ADD has recorded the attempt; another may not say that an answer was lost.

    Raises:
        CniError: the budget is over, the reconciler hangs, or its answer is no result.
    """
    deadline = time.monotonic() + left_s
    asked = question(call, "add", inode)
    while True:
        asked["budgetSeconds"] = max(left_s, RETRY_S)
        try:
            with connection:
                reply = _ask_for_result(connection, asked, left_s + GRACE_S)
            if reply.get("reason") != protocol.ENDING:
                return reply
            problem = refusal(reply)
        except ConnectionError as error:
            problem = _unanswered(error)
        except (OSError, ValueError) as error:
            raise _unanswered(error) from error
        time.sleep(RETRY_S)  # what closes each connection at once is asked no faster
        left_s = deadline - time.monotonic()
        if left_s < RETRY_S or not _start_s(call):
            raise problem
        connection, left_s = wait(call, left_s)
        if is_own:
            asked["again"] = True


def check(call: Call, connection: exchange.Connection, inode: int) -> Object:
    """Ask whether a pod is as it should be.

    Raises:
        CniError: the reconciler does not answer, or its answer is no result.
    """
    try:
        return _ask_for_result(connection, question(call, "check", inode), CHECK_S)
    except (OSError, ValueError) as error:
        raise _unanswered(error) from error


def _ask_for_result(connection: exchange.Connection, asked: Object, timeout_s: float) -> Object:
    """Ask what a pod is given; return that, or a refusal.

    Raises:
        OSError: the connection broke, or the time ran out.
        ValueError: the answer is neither.
    """
    reply = exchange.ask(connection, asked, timeout_s)
    if reply.get("ok") is True and not protocol.is_result(reply):
        raise ValueError("the answer is no result")
    return reply


def question(call: Call, do: str, inode: int) -> Object:
    """Return what is asked for one attachment; ``inode`` is that of the pod's namespace."""
    asked: Object = {
        "do": do,
        "containerID": call.container_id,
        "ifname": call.ifname,
        "budgetSeconds": call.budget_s,
        "netnsInode": inode,
        "attempt": call.attempt,
        "pod": call.pod,
        "trace": call.trace_id,
    }
    return asked | {"uid": call.pod_uid} if call.pod_uid else asked


def refusal(reply: Object) -> CniError:
    """Return what the reconciler has refused."""
    code = reply.get("code")
    if type(code) is not int or not 0 < code <= protocol.MAX_CODE:
        code = protocol.TRY_AGAIN
    msg = str(reply.get("msg", "the reconciler refused"))
    return CniError(code, msg, str(reply.get("details", "")))


def not_permitted(call: Call, error: OSError) -> CniError:
    """Return what is told to a user who may not use the socket."""
    what = f"this user may not use {call.state_dir}: a runtime must run this as root"
    return CniError(protocol.IO_FAILURE, what, error)


def _unanswered(error: Exception) -> CniError:
    return CniError(protocol.TRY_AGAIN, "the reconciler did not answer", error)
