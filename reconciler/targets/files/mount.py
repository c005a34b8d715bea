"""Mounts: whether a path is a mount of its own."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

AT_FDCWD = -100
STATX_BASIC_STATS, STATX_ATTR_MOUNT_ROOT = 0x7FF, 0x2000
"""linux/stat.h; since Linux 5.8. A kernel that does not know the attribute leaves it unset."""

STATX_SIZE = 256
ATTRIBUTES = slice(8, 16)
"""``struct statx``: where ``stx_attributes`` is."""

_libc = ctypes.CDLL(None, use_errno=True)


def is_mounted_alone(path: Path) -> bool:
    """Whether a file is itself the root of a mount, as Kubernetes' ``subPath`` makes it.

    Asked of the kernel for this one path: ``/proc/self/mountinfo`` has a line for each mount of
    the host. What cannot be told is False.
    """
    buffer = ctypes.create_string_buffer(STATX_SIZE)
    code = _libc.statx(AT_FDCWD, os.fsencode(path), 0, STATX_BASIC_STATS, buffer)
    attributes = int.from_bytes(buffer.raw[ATTRIBUTES], "little") if code == 0 else 0
    return bool(attributes & STATX_ATTR_MOUNT_ROOT)
