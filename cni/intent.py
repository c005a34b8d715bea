"""Intents: one file for each container and interface, which is whole or does not exist."""

from __future__ import annotations

import errno
import json
import os

from cni.protocol import MAX_TEXT, Call, is_path

MAX_BYTES = 65536
"""Of one intent; those that are written here have a tenth of it at most."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of a file system that is full or read-only."""

WANTED, RELEASED = b'"wanted"  ', b'"released"'
"""The state as it is written. Both have the same length, so that one can replace the other in
place on a disk without room for another file."""


def body_of(call: Call, state: str, netns_inode: int, attempt: str) -> dict[str, object]:
    """Return the record of a call.

    Args:
        call: what the runtime says.
        state: ``wanted`` or ``released``.
        netns_inode: 0 if it is unknown.
        attempt: text that no other ADD has: the span that it is.
    """
    return {
        "state": state,
        "version": 1,
        "containerID": call.container_id,
        "ifname": call.ifname,
        "netns": call.netns if is_path(call.netns) else "",
        "netnsInode": netns_inode,
        "podNamespace": call.args.get("K8S_POD_NAMESPACE", "")[:MAX_TEXT],
        "podName": call.args.get("K8S_POD_NAME", "")[:MAX_TEXT],
        "podUID": call.pod_uid,
        "network": call.network,
        "attempt": attempt,
        "traceparent": call.environ.get("TRACEPARENT", "")[:MAX_TEXT],
        "tracestate": call.environ.get("TRACESTATE", "")[: 2 * MAX_TEXT],
    }


def path_of(state_dir: str, container_id: str, ifname: str) -> str:
    """Return the path of an intent."""
    # Joined by a colon, which neither part may contain.
    return f"{state_dir}/intents/{container_id}:{ifname}.json"


def read(path: str) -> dict[str, object] | None:
    """Return what is recorded; None if nothing is, or nothing that can be understood."""
    try:
        # A pipe or device under this name must not make a runtime wait.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            # As bytes, json would guess an encoding: of zeros, which is what a loss of power may
            # leave, one that the static executable does not have.
            body = json.loads(os.read(fd, MAX_BYTES).decode())
        finally:
            os.close(fd)
    except (OSError, ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def names(state_dir: str) -> list[str]:
    """Return the paths of all intents.

    Raises:
        OSError: the directory cannot be read.
    """
    directory = f"{state_dir}/intents"
    try:
        found = os.listdir(directory)
    except FileNotFoundError:
        return []
    return [f"{directory}/{name}" for name in sorted(found) if name.endswith(".json")]


def record(path: str, body: dict[str, object]) -> None:
    """Write an intent durably: temporary file, fsync, rename, fsync of the directory.

    Raises:
        OSError: the disk is full, read-only, or not ours to write to.
    """
    directory, _, name = path.rpartition("/")
    _make(directory)
    temporary = f"{directory}/.{name}.{os.getpid()}.tmp"
    content = json.dumps(body).encode().replace(b'"wanted"', WANTED, 1) + b"\n"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            while content:
                content = content[os.write(fd, content) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError:
        _unlink(temporary)
        raise
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def overwrite(path: str) -> bool:
    """Turn a wanted intent into a released one in its own place; return whether it is one now.

    It needs no space on the disk: these few bytes are at the file's beginning, in one page.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        content = os.read(fd, MAX_BYTES)
        at = content.find(WANTED)
        if at < 0:
            return b'"state": "released"' in content
        os.pwrite(fd, RELEASED, at)
        # The file's time has the resolution of clock ticks; a new size shows the change.
        os.ftruncate(fd, len(content.rstrip()))
        os.fsync(fd)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _make(directory: str) -> None:
    """Make a directory, and those above it that are missing."""
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        above = directory.rstrip("/").rpartition("/")[0]
        if not above:
            raise
        _make(above)
        _make(directory)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return  # it was never made, or the disk is read-only by now
