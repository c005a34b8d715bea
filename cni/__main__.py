"""Environment and standard input in, one JSON object out.

ADD records the intent, then waits on the reconciler's socket for the outcome. DEL records the
release, which is what counts; the reconciler honours it now or when it is next up.
"""

from __future__ import annotations

import json
import os
import socket
import sys

from cni import intent, protocol
from cni.protocol import Call, CniError

CONNECT_S = 2.0
"""Seconds to reach the socket: with 512 places in its queue, longer means that nobody accepts."""

GRACE_S = 2.0
"""Seconds beyond the budget in which the reconciler's own refusal may still arrive."""


def main() -> int:
    """Run one call; return the exit status."""
    version = ""
    try:
        config = _read_config()
        if isinstance(config.get("cniVersion"), str):
            version = str(config["cniVersion"])
        answer, status = _run(dict(os.environ), config), 0
    except CniError as problem:
        answer, status = protocol.error(problem, version), 1
    except Exception as bug:  # noqa: BLE001 - the specification wants JSON, whatever happened
        internal = CniError(protocol.OUR_BUG, "internal error", f"{type(bug).__name__}: {bug}")
        answer, status = protocol.error(internal, version), 1
    if answer is not None:
        sys.stdout.write(json.dumps(answer) + "\n")
    return status


def _read_config() -> dict[str, object]:
    try:
        config = json.loads(sys.stdin.buffer.read())
    except (ValueError, RecursionError) as error:
        raise CniError(
            protocol.DECODING_FAILURE, "standard input is no JSON", str(error)
        ) from error
    if not isinstance(config, dict):
        raise CniError(protocol.DECODING_FAILURE, "standard input is no JSON object")
    return config


def _run(environ: dict[str, str], config: dict[str, object]) -> dict[str, object] | None:
    if environ.get("CNI_COMMAND") == "VERSION":
        return protocol.versions(config)
    call = Call(environ, config)
    call.check()
    if call.verb == "DEL":
        _release(call, 0)
        return None
    return protocol.result(_add(call), call.version)


def _add(call: Call) -> dict[str, object]:
    inode = _netns_inode(call)
    connection = _connect(call)  # first: with nobody to serve it, nothing is left behind
    with connection:
        _record(call, "wanted", inode)
        try:
            reply = _ask(connection, call, call.budget_s + GRACE_S)
        except (OSError, ValueError) as error:
            # The reconciler went away or hangs: what it may have begun, it shall undo.
            _release(call, inode)
            raise CniError(
                protocol.TRY_AGAIN,
                "the reconciler did not answer",
                f"{type(error).__name__}: {error}",
            ) from error
    if reply.get("ok") is not True:
        _release(call, inode)
        code = reply.get("code")
        raise CniError(
            code if isinstance(code, int) else protocol.TRY_AGAIN,
            str(reply.get("msg", "the reconciler refused")),
            str(reply.get("details", "")),
        )
    return reply


def _release(call: Call, netns_inode: int) -> None:
    """Record that nothing is wanted any more, and hint that it was recorded.

    The record is what counts: the reconciler sees it when it is up, hint or no hint.
    """
    _record(call, "released", netns_inode)
    try:
        with _connect(call) as connection:
            connection.sendall(_question(call, "del"))
    except (CniError, OSError):
        return


def _record(call: Call, state: str, netns_inode: int) -> None:
    try:
        intent.record(call, state, netns_inode)
    except OSError as error:
        raise CniError(
            protocol.IO_FAILURE,
            f"cannot record the intent in {call.state_dir}",
            str(error.strerror),
        ) from error


def _netns_inode(call: Call) -> int:
    """Return the inode of the pod's namespace.

    Raises:
        CniError: there is none, or it is the one this process runs in (the specification forbids
            it: the host would lose its own network).
    """
    try:
        inode = os.stat(call.netns).st_ino
        own = os.stat("/proc/self/ns/net").st_ino
    except OSError as error:
        raise CniError(
            protocol.INVALID_ENVIRONMENT, "CNI_NETNS cannot be opened", str(error)
        ) from error
    if inode == own:
        raise CniError(protocol.INVALID_ENVIRONMENT, "CNI_NETNS is the host's own namespace")
    return inode


def _connect(call: Call) -> socket.socket:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        s.settimeout(CONNECT_S)
        s.connect(os.path.join(call.state_dir, "node-network.sock"))
    except OSError as error:
        s.close()
        raise CniError(
            protocol.TRY_AGAIN,
            "the reconciler is not running on this node",
            f"{call.state_dir}/node-network.sock: {error}",
        ) from error
    return s


def _ask(s: socket.socket, call: Call, timeout_s: float) -> dict[str, object]:
    """Ask for the pod's attachment, return the answer.

    Raises:
        OSError: the connection broke or the time ran out.
        ValueError: the answer is no JSON object.
    """
    s.settimeout(timeout_s)
    s.sendall(_question(call, "add"))
    received = b""
    while not received.endswith(b"\n"):
        part = s.recv(65536)
        if not part:
            raise ConnectionResetError("the connection was closed")
        received += part
    reply = json.loads(received)
    if not isinstance(reply, dict):
        raise ValueError("the answer is no object")
    return reply


def _question(call: Call, do: str) -> bytes:
    question = {
        "do": do,
        "containerID": call.container_id,
        "ifname": call.ifname,
        "budgetSeconds": call.budget_s,
    }
    return json.dumps(question).encode() + b"\n"


if __name__ == "__main__":
    sys.exit(main())
