"""One record's file: listed, told apart by version, read with a bound, written atomically."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reconciler.errors import ObserveError
from reconciler.targets.files.bounded import read_file, replace_file

Json = dict[str, Any]

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

OUT_OF_MEANS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors that this process, or this host, has with any file: they say nothing about this one."""

UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    MemoryError,
)
"""What reading a record may raise, whatever is in its place."""


class Listing:
    """The names of the records' files in one directory, up to ``MAX_RECORDS``.

    Attributes:
        count: files at the last look.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.count = 0

    def names(self, order: Callable[[str], Any]) -> list[str]:
        """List them; a directory that does not exist has none.

        Args:
            order: of names, if there are too many: the first of them are kept.

        Raises:
            OSError: the directory cannot be listed.
        """
        self.count = 0
        try:
            names = [name for name in os.listdir(self.path) if name.endswith(".json")]  # noqa: PTH208 - there are hundreds
        except FileNotFoundError:
            return []
        self.count = len(names)
        if self.is_crowded:
            names.sort(key=order)
            del names[MAX_RECORDS:]
        return names

    @property
    def is_crowded(self) -> bool:
        """Whether there are more files than are looked at."""
        return self.count > MAX_RECORDS


def version_of(path: str) -> Version:
    """Return the version of a file.

    Raises:
        OSError: it does not exist.
        ValueError: it is no regular file.
    """
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no file")
    return found.st_ino, found.st_mtime_ns, found.st_size


def read_record(path: Path | str, *, cut: bool = False) -> bytes:
    """Read a record's file, or its beginning; a link is not followed.

    Raises:
        OSError: it cannot be read, is no regular file, or too large.
    """
    return read_file(path, MAX_RECORD_BYTES, follow=False, cut=cut)


def write_atomically(path: Path, content: Json) -> None:
    """Replace a record's file.

    Raises:
        OSError: it cannot be written.
    """
    # Of this thread alone: two of them may write the same record at once.
    interim = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    replace_file(path, interim, [json.dumps(content, sort_keys=True).encode()], None)


def is_same(fd: int, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        there, held = path.lstat(), os.fstat(fd)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def printable(text: str) -> str:
    """Return a file's name as it can be printed: it need not be UTF-8."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def why(error: BaseException) -> str:
    """Return an error's type and the beginning of its text."""
    return f"{type(error).__name__}: {error}"[:MAX_WHY]


def raise_for_means(path: str, error: BaseException) -> None:
    """Tell what this process lacks from what is wrong with a file.

    Raises:
        ObserveError: it lacks file descriptors or memory.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in OUT_OF_MEANS:
        raise ObserveError(f"record {printable(path)}", why(error)) from error
