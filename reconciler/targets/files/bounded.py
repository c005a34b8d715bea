"""Files that others write: read if they are files, and as far as they are not too large."""

from __future__ import annotations

import errno
import os
import stat
from itertools import islice
from pathlib import Path


def read_file(path: Path, limit: int) -> bytes:
    """Return a file's content. A FIFO in its place does not make the reader wait.

    Args:
        path: links are followed.
        limit: bytes.

    Raises:
        OSError: it is not there, is no file, cannot be read, or is larger.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        with open(fd, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    finally:
        os.close(fd)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes", str(path))
    return content


def list_files(directory: Path, pattern: str, limit: int) -> list[Path]:
    """List what matches in a directory, in order; of a larger one only so many.

    One that is not there, or not ours to read, has no files.
    """
    try:
        return sorted(islice(directory.glob(pattern), limit))
    except OSError:
        return []
