"""One record's file: listed, told apart by version, read with a bound, written atomically.

And what is not in it: who may write it, whether its namespace is there, and whether the clock was
set since.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from reconciler.core.attachment import Attachment, Intent, netns_inode, netns_path
from reconciler.errors import LockedError, StateError
from reconciler.targets.files.bounded import read_file, replace_file
from reconciler.targets.netlink.namespaces import own_namespace
from reconciler.targets.state.codec import Json, R

Version = tuple[int, int, int]
"""Inode, time of modification in nanoseconds, size in bytes: tells one content of a file from
every other."""

NO_FILE: Version = (0, 0, 0)
"""The version of what is on no disk, or cannot be told from another content."""

MAX_RECORD_BYTES = 65536
"""Of one record; ours have a tenth of it at most. What is larger is not read."""

MAX_RECORDS = 10_000
"""Files of one directory that are looked at: more than ten times the pods of the largest node.
More files, put there by another program, make no pass slower."""

MAX_WHY = 200
"""Characters of an error's text in a condition."""

UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError),
    *(OverflowError, RecursionError, MemoryError),
)
"""What reading a record may raise, whatever is in its place."""

OUT_OF_MEANS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors that this process, or this host, has with any file: they say nothing about this one."""

STEP_S = 1.0
"""Seconds by which the clock must have left the time since boot behind, or run ahead of it, to
have been set. NTP slews by 500 ppm at most (adjtimex(2)): less than this in half an hour."""


IsAlive = Callable[[str, int], bool]
"""Whether the path of a namespace still leads to it, by its inode; 0 if that is not known."""


def list_records(path: str, order: Callable[[str], Any]) -> tuple[list[str], int]:
    """List the first ``MAX_RECORDS`` names of records, and say how many there are.

    A directory that does not exist has none.
    """
    try:
        names = [name for name in os.listdir(path) if name.endswith(".json")]  # noqa: PTH208 - there are hundreds
    except FileNotFoundError:
        names = []
    count = len(names)
    return sorted(names, key=order)[:MAX_RECORDS] if count > MAX_RECORDS else names, count


def version_of(path: str) -> Version:
    """Return the version of a regular file."""
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no file")
    return found.st_ino, found.st_mtime_ns, found.st_size


def read_record(path: Path | str, *, cut: bool = False) -> bytes:
    """Read a record's file, or its beginning; a link is not followed."""
    return read_file(path, MAX_RECORD_BYTES, follow=False, cut=cut)


def write_atomically(path: Path, content: Json) -> None:
    """Replace a record's file."""
    # Of this thread alone: two of them may write the same record at once.
    interim = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    replace_file(path, interim, [json.dumps(content, sort_keys=True).encode()], None)


def why(error: BaseException) -> str:
    """Return an error's type and the beginning of its text."""
    return f"{type(error).__name__}: {error}"[:MAX_WHY]


class Lock:
    """A locked file, whose text is the number of the process that holds it.

    ``fd`` is the descriptor that holds it; None until it is taken.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.fd: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process holds it."""
        return self.fd is not None

    @property
    def is_own(self) -> bool:
        """Whether the file is still the one that is held here, if any is."""
        fd = self.fd
        try:
            return fd is None or os.path.samestat(self._path.lstat(), os.fstat(fd))
        except OSError:
            return False

    def take(self, others: str) -> None:
        """Lock the file that is there now, and let go of an earlier one.

        Args:
            others: what the LockedError says of the process that has it.
        """
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(self._path, flags, 0o600)
        except OSError as error:
            cure = "run as root" if error.errno == errno.EACCES else "see to the directory"
            raise StateError(f"cannot open {self._path}: {error.strerror}; {cure}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "?"
            os.close(fd)
            raise LockedError(f"process {holder} {others}") from error
        with suppress(OSError):  # a full disk: who holds it is not told then
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        before, self.fd = self.fd, fd
        if before is not None:
            os.close(before)


class Clock:
    """The wall clock, held against the time since boot, which cannot be set.

    A record says by both when it was written. So long as the node has not booted since, a step of
    the clock in between is known, and the record's times are moved by it. After a boot, or if the
    boot's identity cannot be read, only the wall clock is left; no pod has survived a boot.
    """

    def __init__(self, offset: Callable[[], float]) -> None:
        try:
            self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            self._boot = ""
        self._read = offset
        self._offset = offset()

    def follow(self) -> float:
        """Return by how many seconds the clock was set since the last time; 0 if it was not."""
        now = self._read()
        delta = now - self._offset
        if abs(delta) < STEP_S:
            return 0.0
        self._offset = now
        return delta

    def stamp(self) -> Json:
        """Return what a record with times says of the clock it was written by."""
        return {"clock": {"boot": self._boot, "offset": self._offset}}

    def set_since(self, record: Json) -> float:
        """Return by how many seconds the clock was set since a record was written."""
        stamp = record.get("clock")
        if not isinstance(stamp, dict) or not self._boot or stamp.get("boot") != self._boot:
            return 0.0
        delta = self._offset - float(stamp.get("offset", self._offset))
        if not math.isfinite(delta):
            raise ValueError(f"{stamp} is no clock")
        return 0.0 if abs(delta) < STEP_S else delta


def clock_offset() -> float:
    """Return the wall clock less the time since boot, time asleep included."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def with_life(record: R, is_alive: IsAlive) -> R:
    """Return a record with whether its namespace exists, which its file does not say."""
    if not isinstance(record, Intent | Attachment):
        return record
    if isinstance(record, Intent):
        alive = is_alive(record.netns, record.netns_inode)
    else:
        alive = is_alive(netns_path(record.netns), netns_inode(record.netns))
    return record if alive is record.netns_alive else replace(record, netns_alive=alive)


def remembered_life() -> IsAlive:
    """Return what looks at each namespace once: an intent and its attachment ask for the same.

    A path can be reused. It never counts if it leads to our own namespace, which is the host's: a
    record without an inode may be of a path like /proc/7/ns/net whose process has ended. The host
    would lose its own network.
    """
    own = own_namespace()

    @cache
    def is_alive(netns: str, inode: int) -> bool:
        if not netns:
            return False
        try:
            found = os.stat(netns)  # noqa: PTH116 - there are hundreds
        except OSError as error:
            return error.errno in OUT_OF_MEANS  # nothing is released on that
        return inode in (0, found.st_ino) and (found.st_dev, found.st_ino) != own

    return is_alive
