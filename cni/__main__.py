"""Environment and standard input in, one JSON object out.

ADD records the intent, then waits on the reconciler's socket for the outcome. DEL records the
release, which is what counts; the reconciler honours it now or when it is next up.
"""

from __future__ import annotations

import os
import sys
import time

from cni import exchange, intent, protocol, request, strict_json, trail
from cni.protocol import Call, CniError, Object

MAX_CONFIG = 1 << 22
"""Bytes of standard input: a configuration with the attachments of a node is some hundred KiB."""


def main() -> int:
    """Run one call; return the exit status."""
    began = time.monotonic()
    config: Object = {}
    call: Call | None = None
    answer: Object | None = None
    problem: CniError | None = None
    is_full = False
    try:
        if os.environ.get("CNI_COMMAND") == "VERSION":
            config = _read_asked_version()
            answer = protocol.versions(config)
        else:
            config = _read_config()
            call = Call(dict(os.environ), config)
            call.check()
            answer = VERBS[call.verb](call)
    except CniError as refused:
        problem = refused
    except MemoryError:
        is_full = True  # its traceback keeps what fills the memory until this block has ended
    except Exception as bug:  # noqa: BLE001 - the specification wants JSON, whatever happened
        problem = CniError(protocol.OUR_BUG, "internal error", f"{type(bug).__name__}: {bug}")
    if is_full:
        config, call = {}, None
        what = "there is not enough memory to read standard input and to answer"
        problem = CniError(protocol.TRY_AGAIN, what, "the runtime's limits may be too low")
    if problem is not None:
        if os.environ.get("CNI_COMMAND") == "DEL":
            problem = protocol.defuse(problem)
        answer = protocol.error(problem, str(config.get("cniVersion", "")))
    if answer is not None and not _print(answer) and problem is None:
        problem = _untaken(call)
    _leave_trail(config, call, problem, time.monotonic() - began)
    return 0 if problem is None else 1


def _read_config() -> Object:
    received, malformed = b"", protocol.DECODING_FAILURE
    try:
        while part := os.read(0, 65536):
            received += part
            if len(received) > MAX_CONFIG:
                raise CniError(malformed, f"standard input has more than {MAX_CONFIG} bytes")
        # Exchanged JSON is UTF-8 (RFC 8259, section 8.1).
        config = strict_json.read(received.decode())
    except OSError as error:
        raise CniError(malformed, "standard input cannot be read", error) from error
    except ValueError as error:
        raise CniError(malformed, "standard input is no JSON", str(error)) from error
    if not isinstance(config, dict):
        raise CniError(malformed, "standard input is no JSON object")
    return config


def _read_asked_version() -> Object:
    """Read the configuration of a VERSION; anything else on standard input counts as none.

    The reference plugins' ``skel.go`` does not look at standard input for VERSION either.
    """
    try:
        return _read_config()
    except CniError:
        return {}


def _print(answer: Object) -> bool:
    """Write the answer to standard output; return whether that succeeded."""
    left = strict_json.write(answer).encode() + b"\n"
    try:
        while left:
            left = left[os.write(1, left) :]
    except OSError:
        return False
    return True


def _untaken(call: Call | None) -> CniError:
    """Undo an ADD whose result could not be printed: the runtime may send no DEL for it."""
    try:
        if call is not None and call.verb == "ADD":
            _give_back(call)
    except CniError as problem:
        return problem
    return CniError(protocol.IO_FAILURE, "the client was gone before it took the result")


def _add(call: Call) -> Object:
    inode = intent.need_netns(call)
    path = _path(call)
    connection, left_s = request.wait(call, call.budget_s)  # first: or else nothing is recorded
    with connection:
        recorded = intent.read(path)
        found = intent.judge_add(
            recorded,
            netns=call.netns,
            inode=inode,
            pod_uid=call.pod_uid,
            is_alive=intent.is_alive(recorded),
        )
        if found == intent.TAKEN:
            whose = f"pod {call.pod}" if call.pod else f"container {call.container_id}"
            what = f"{whose} has {call.ifname} already, in another namespace"
            problem = "it keeps it; a DEL for it comes first"
            raise CniError(protocol.ALREADY_ATTACHED, what, problem)
        if found == intent.NEW:
            call.attempt = os.urandom(8).hex()
            try:
                intent.record(path, intent.body_of(call, "wanted", inode, call.attempt))
            except OSError as error:
                raise _unrecorded(call, error) from error
        elif recorded:
            call.attempt = str(recorded.get("attempt", ""))
        try:
            reply = request.add(call, connection, inode, left_s, is_own=found == intent.NEW)
        except CniError:
            # The reconciler went away or hangs: what it may have begun, it shall undo. What an
            # earlier ADD asked for stays: it may be in use.
            if found == intent.NEW:
                _give_back(call)
            raise
    if reply.get("ok") is not True:
        if reply.get("code") != protocol.ALREADY_ATTACHED:
            _give_back(call)
        raise request.refusal(reply)
    return protocol.result(reply, call.version, call.previous)


def _del(call: Call) -> None:
    path = _path(call)
    recorded = intent.read(path)
    if not intent.is_meant(
        recorded, netns=call.netns, inode=intent.find_netns(call.netns), pod_uid=call.pod_uid
    ):
        call.note = "for an older sandbox: nothing to free"
        return
    call.attempt = str((recorded or {}).get("attempt", ""))
    if recorded is None or recorded.get("state") != "released":
        _release(call, path, _released(call, recorded))
    exchange.hint(call.state_dir, request.question(call, "del", 0))


def _check(call: Call) -> None:
    inode = intent.need_netns(call)
    with request.connect(call) as connection:
        reply = request.check(call, connection, inode)
    if reply.get("ok") is not True:
        raise request.refusal(reply)
    if difference := protocol.find_difference(call.previous, reply, call.ifname):
        what = "prevResult is not what the pod was given"
        raise CniError(protocol.RESULT_DIFFERS, what, difference)


def _gc(call: Call) -> None:
    """Release what the runtime does not list.

    The runtime runs no ADD or DEL beside a GC (specification, "GC"). An intent that was written
    after this began was not there to be listed, whatever the runtime does.
    """
    kept = protocol.parse_valid_attachments(call.config.get("cni.dev/valid-attachments"))
    began = time.time()
    released, problems = 0, []
    try:
        paths = intent.names(call.state_dir)
    except OSError as error:
        raise CniError(protocol.IO_FAILURE, "cannot list the intents", error) from error
    for path in paths:
        recorded = intent.read(path) or {}
        key = str(recorded.get("containerID")), str(recorded.get("ifname"))
        if (
            recorded.get("state") != "wanted"
            or recorded.get("network") != call.network
            or key in kept
            or path != intent.path_of(call.state_dir, *key)
            or intent.written_at(path) > began
        ):
            continue
        call.container_id, call.ifname = key
        try:
            _release(call, path, _released(call, recorded))
        except CniError as problem:
            problems.append(f"{'/'.join(key)}: {problem.msg}: {problem.details}")
            continue
        released += 1
        exchange.hint(call.state_dir, request.question(call, "del", 0))
    call.note = f"{released} released"
    if problems:
        what = f"{len(problems)} attachments were not released"
        raise CniError(protocol.IO_FAILURE, what, problems[0])


def _status(call: Call) -> None:
    try:
        with exchange.connect(call.state_dir, exchange.SHORT_S) as connection:
            reply = exchange.ask(connection, {"do": "ready"}, exchange.SHORT_S)
    except PermissionError as error:
        raise request.not_permitted(call, error) from error
    except (OSError, ValueError) as error:
        what = f"{protocol.NOT_RUNNING}: the reconciler does not answer on this node"
        raise CniError(protocol.NOT_AVAILABLE, what, error) from error
    if reply.get("ok") is not True:
        raise request.refusal(reply)


VERBS = {"ADD": _add, "DEL": _del, "CHECK": _check, "GC": _gc, "STATUS": _status}


def _give_back(call: Call) -> None:
    """Release what an ADD of this process has asked for."""
    path = _path(call)
    _release(call, path, _released(call, intent.read(path)))
    exchange.hint(call.state_dir, request.question(call, "del", 0))


def _release(call: Call, path: str, body: Object) -> None:
    """Record a release, in the way that still works.

    On a full disk the existing intent is changed in place. If that fails, the release is sent to
    the reconciler, which remembers it. If the reconciler is down, it finds later that the pod's
    namespace is gone, and releases the attachment.

    Raises:
        CniError: none of these worked, and the disk is neither full nor read-only.
    """
    try:
        intent.record(path, body)
    except OSError as error:
        if intent.overwrite(path) or _hand_over(call, body) or error.errno in intent.FULL:
            call.note = f"not recorded as usual: {protocol.why(error)}"
            return
        raise _unrecorded(call, error) from error


def _hand_over(call: Call, body: Object) -> bool:
    try:
        with exchange.connect(call.state_dir, exchange.SHORT_S) as connection:
            question = {**request.question(call, "release", 0), "intent": body}
            return exchange.ask(connection, question, exchange.SHORT_S).get("ok") is True
    except (OSError, ValueError):
        return False


def _released(call: Call, recorded: Object | None) -> Object:
    """Return the release of what is recorded: of that generation, and by that attempt."""
    body = intent.body_of(call, "released", intent.find_netns(call.netns), call.attempt)
    for key, value in (recorded or {}).items():
        known = body.get(key)
        if key != "state" and known is not None and type(value) is type(known) and value:
            body[key] = value
    return body


def _path(call: Call) -> str:
    return intent.path_of(call.state_dir, call.container_id, call.ifname)


def _unrecorded(call: Call, error: OSError) -> CniError:
    return CniError(protocol.IO_FAILURE, f"cannot record the intent in {call.state_dir}", error)


def _leave_trail(
    config: Object, call: Call | None, problem: CniError | None, seconds: float
) -> None:
    if call is None or (call.verb == "STATUS" and problem is None):
        return  # a runtime asks every few seconds
    fields = {
        "verb": call.verb,
        "container": call.container_id,
        "ifname": call.ifname,
        "pod": call.pod,
        "uid": call.pod_uid,
        "netns": call.netns,
        "trace": call.trace_id,
        "attempt": call.attempt,
        "code": str(problem.code if problem else 0),
        "ms": f"{seconds * 1000:.1f}",
        "note": call.note,
        "error": f"{problem.msg}: {problem.details}" if problem else "",
    }
    trail.write(config, "error" if problem else "info", fields)


if __name__ == "__main__":
    sys.exit(main())
