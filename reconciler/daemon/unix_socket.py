"""Listening Unix sockets, and who may connect to them."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from reconciler.errors import StateError

STATUS = "status.sock"
"""Name of the socket beside the other one that answers ``status`` to the members of a group."""

QUEUE = 512  # connections that the kernel keeps for us; a node's worth of pods may ask at once

Place = tuple[int, int] | None  # device and inode of a path; None if there is nothing


def find_place(path: Path) -> Place:
    """Tell what is at a path from what was there before."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def listen(path: Path, group: int | None = None) -> socket.socket:
    """Return a listening socket that only root may connect to, and who is in a group if given.

    Raises:
        StateError: it cannot be made.
    """
    with contextlib.suppress(FileNotFoundError):
        path.unlink()  # left by a process that was killed; the lock says it is gone
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o177)
    try:
        listening.bind(str(path))
        if group is not None:
            os.chown(path, -1, group)
            path.chmod(0o660)
        listening.listen(QUEUE)
    except (OSError, OverflowError) as error:  # no group has a number of more than 32 bits
        listening.close()
        # AF_UNIX takes 107 bytes (unix(7)).
        cure = "use another directory"
        if group is not None and isinstance(error, PermissionError):
            cure = f"it takes CAP_CHOWN, or that this process is in group {group}"
        raise StateError(f"cannot listen on {path}: {error}; {cure}") from error
    finally:
        os.umask(previous)
    return listening
