"""Reading the document's file, whatever stands in its place."""

from __future__ import annotations

import errno
import os
import pathlib
import stat
from typing import BinaryIO

from schemas.problem import DocumentError, Problem

MAX_BYTES = 1 << 20
"""Kubernetes refuses ConfigMaps larger than this."""

_OTHERS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read(path: pathlib.Path) -> str:
    """Read a document's file. A FIFO or device in its place does not make this wait.

    Raises:
        DocumentError: it is not there, is no file, is too large, cannot be read, or is not UTF-8.
    """
    try:
        return _decode(_read_file(path), str(path))
    except OSError as error:
        message = f"cannot be read: {(error.strerror or str(error)).lower()}"
        raise DocumentError([Problem(str(path), 0, 0, "", message)]) from error


def read_stream(stream: BinaryIO, source: str) -> str:
    """Read a document to the stream's end; raises a DocumentError, as ``read`` does."""
    try:
        content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        message = f"cannot be read: {(error.strerror or str(error)).lower()}"
        raise DocumentError([Problem(source, 0, 0, "", message)]) from error
    if len(content) > MAX_BYTES:
        raise _too_large(source)
    return _decode(content, source)


def _decode(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        message = f"not UTF-8: byte {error.object[error.start]:#04x}"
        raise DocumentError([Problem(source, line, column, "", message)]) from error


def _read_file(path: pathlib.Path) -> bytes:
    """Read a regular file, up to the first byte beyond the limit.

    Opening a FIFO waits for a writer, and opening some devices has effects. So the type is checked
    before the file is opened, and again on the descriptor.
    """
    what = path.stat()
    if stat.S_ISREG(what.st_mode):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with open(fd, "rb") as f:  # noqa: PTH123 - of a descriptor
            what = os.fstat(fd)
            if stat.S_ISREG(what.st_mode):
                content = f.read(MAX_BYTES + 1)
                if len(content) > MAX_BYTES:
                    raise _too_large(str(path))
                return content
    if stat.S_ISDIR(what.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    found = next((word for is_it, word in _OTHERS if is_it(what.st_mode)), "something else")
    message = f"cannot be read: it is {found}; put a file in its place"
    raise DocumentError([Problem(str(path), 0, 0, "", message)])


def _too_large(source: str) -> DocumentError:
    return DocumentError([Problem(source, 1, 1, "", f"larger than {MAX_BYTES} bytes")])
