"""Files: read within bounds whatever stands in their place, and replaced as a whole."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from itertools import islice
from pathlib import Path


def read_file(path: Path | str, limit: int, *, follow: bool = True, cut: bool = False) -> bytes:
    """Return a file's content. A FIFO in its place does not make the reader wait.

    Args:
        path: of the file.
        limit: bytes.
        follow: follow a link in its place.
        cut: return the beginning of one that is larger.

    Raises:
        OSError: it is not there, is no file, cannot be read, or is larger.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    fd = os.open(path, flags if follow else flags | os.O_NOFOLLOW)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        with open(fd, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    finally:
        os.close(fd)
    if len(content) > limit and not cut:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes", str(path))
    return content[:limit]


def replace_file(path: Path, interim: Path, chunks: Iterable[bytes], mode: int | None) -> None:
    """Put a new file into a place, so that a crash leaves the old content or the new one.

    Args:
        path: of the file.
        interim: where it is written before it is renamed.
        chunks: its content.
        mode: permissions; None for those that the process gives to any file.

    Raises:
        OSError: it cannot be written, or a directory is in its place.
    """
    interim.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(interim, flags, 0o666 if mode is None else 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            if mode is not None:
                os.fchmod(fd, mode)
            os.fsync(fd)
        interim.replace(path)
    except OSError:
        interim.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable.

    Raises:
        OSError: it does not exist, or the disk refuses.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def list_files(directory: Path, pattern: str, limit: int) -> list[Path]:
    """List what matches in a directory, in order; of a larger one only so many.

    One that is not there, or not ours to read, has no files.
    """
    try:
        return sorted(islice(directory.glob(pattern), limit))
    except OSError:
        return []
