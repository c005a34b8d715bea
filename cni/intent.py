"""Intents on disk: one file for each container and interface, whole or not there at all."""

from __future__ import annotations

import json
import os

from cni.protocol import Call


def record(call: Call, state: str, netns_inode: int) -> None:
    """Write the intent durably: temporary file, fsync, rename, fsync of the directory.

    Raises:
        OSError: the disk is full, read-only, or not ours to write to.
    """
    path = _path(call)
    directory, name = os.path.split(path)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    temporary = os.path.join(directory, f".{name}.{os.getpid()}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, json.dumps(call.intent(state, netns_inode)).encode())
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


def _path(call: Call) -> str:
    # Joined by a colon, which neither part may contain.
    return os.path.join(call.state_dir, "intents", f"{call.container_id}:{call.ifname}.json")


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
