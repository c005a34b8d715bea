"""Memory that the C library keeps for later, given back to the host."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Have the C library return what it holds free, if it can.

    glibc keeps the top of each thread's heap; a burst of pods has a thread for each. Source:
    malloc_trim(3). Other C libraries have no such function, and give memory back by themselves.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
