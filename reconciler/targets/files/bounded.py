"""Files: read within bounds whatever stands in their place, and replaced as a whole."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

AT_FDCWD, STATX_BASIC_STATS, STATX_SIZE = -100, 0x7FF, 256
STATX_ATTRIBUTES, STATX_ATTR_MOUNT_ROOT = slice(8, 16), 0x2000
"""linux/stat.h: where ``struct statx`` has attributes, and the one of a mount's root, since Linux
5.8. A kernel that does not know it leaves it unset."""

_libc = ctypes.CDLL(None, use_errno=True)


def read_file(
    path: Path | str, limit: int, *, follow: bool = True, cut: bool = False, own: bool = False
) -> bytes:
    """Return a file's content. A FIFO in its place does not make the reader wait.

    ``follow`` a link in its place; ``cut`` a file that has more bytes than the limit; only if it
    is this process's ``own``, which no other user may write. An OSError says that it is not
    there, is no file, is another's, cannot be read, or is larger.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    fd = os.open(path, flags if follow else flags | os.O_NOFOLLOW)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        if own and (found.st_uid != os.geteuid() or found.st_mode & 0o022):
            owner = f"of user {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}"
            raise OSError(errno.EPERM, f"others may write it: {owner}", str(path))
        with open(fd, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    finally:
        os.close(fd)
    if len(content) > limit and not cut:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes", str(path))
    return content[:limit]


def replace_file(path: Path, interim: Path, chunks: Iterable[bytes], mode: int | None) -> None:
    """Put a new file into a place, so that a crash leaves the old content or the new one.

    It is written to ``interim`` before it is renamed. Its mode is None for the permissions that
    the process gives to any file.
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
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def printable(text: str) -> str:
    """Return a file's name as it can be printed: it need not be UTF-8."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def list_files(directory: Path, pattern: str, limit: int) -> list[Path]:
    """List so many of what matches in a directory; one that cannot be read has no files."""
    try:
        return sorted(islice(directory.glob(pattern), limit))
    except OSError:
        return []


def is_mounted_alone(path: Path) -> bool:
    """Whether a file is itself the root of a mount, as Kubernetes' ``subPath`` makes it.

    Asked of the kernel for this one path: ``/proc/self/mountinfo`` has a line for each mount of
    the host. What cannot be told is False.
    """
    buffer = ctypes.create_string_buffer(STATX_SIZE)
    code = _libc.statx(AT_FDCWD, os.fsencode(path), 0, STATX_BASIC_STATS, buffer)
    attributes = int.from_bytes(buffer.raw[STATX_ATTRIBUTES], "little") if code == 0 else 0
    return bool(attributes & STATX_ATTR_MOUNT_ROOT)
