"""Network namespaces: how this thread gets into one, and out again.

A socket belongs for life to the namespace its thread was in when it was made, which is how the
namespaces of pods are entered: setns, open, setns back; no process, no thread. Python has
setns and unshare from 3.12 on.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from reconciler.core.attachment import netns_inode, netns_path

CLONE_NEWNET = 0x40000000

OWN = "/proc/thread-self/ns/net"

Place = tuple[int, int]
"""Device and inode."""

_libc = ctypes.CDLL(None, use_errno=True)


def open_namespace(identity: str) -> int:
    """Open a namespace by its identity; the caller closes the descriptor.

    Raises:
        FileNotFoundError: it is gone, also if its path leads to another one by now, or to the one
            that this thread is in: what is meant for a pod must not be done to the host.
    """
    path, inode = netns_path(identity), netns_inode(identity)
    # Whatever has come into its place meanwhile, a pipe for one: opening it must not wait.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    found = os.fstat(fd)
    if (inode and found.st_ino != inode) or (found.st_dev, found.st_ino) == own_namespace():
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "leads to another namespace by now", path)
    return fd


def own_namespace() -> Place:
    """Return device and inode of the namespace that this thread is in."""
    found = os.stat(OWN)  # noqa: PTH116 - no file
    return found.st_dev, found.st_ino


@contextmanager
def entered(identity: str) -> Iterator[None]:
    """Put this thread into a namespace for a while; "" stands for the one it is in.

    Raises:
        FileNotFoundError: there is no such namespace.
    """
    if not identity:
        yield
        return
    target = open_namespace(identity)
    try:
        with entered_by(target):
            yield
    except OSError as error:
        # A path whose namespace is gone is an ordinary empty file: setns answers EINVAL.
        if error.errno == errno.EINVAL:
            reason = "not a network namespace"
            raise FileNotFoundError(errno.ENOENT, reason, identity) from error
        raise
    finally:
        os.close(target)


@contextmanager
def entered_by(descriptor: int) -> Iterator[None]:
    """Put this thread into an open namespace for a while; ``OSError`` if it is none."""
    with _coming_back():
        _succeed(_libc.setns(descriptor, CLONE_NEWNET))
        yield


@contextmanager
def empty_namespace() -> Iterator[None]:
    """Put this thread into a network namespace that is made for it, and goes when it leaves."""
    with _coming_back():
        _succeed(_libc.unshare(CLONE_NEWNET))
        yield


@contextmanager
def _coming_back() -> Iterator[None]:
    home = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            yield
        finally:
            _succeed(_libc.setns(home, CLONE_NEWNET))
    finally:
        os.close(home)


def _succeed(result: int) -> None:
    """Raise an ``OSError`` for what a function of the C library has returned."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
