"""Modules that the daemon's libraries import for what the daemon does not use.

prometheus_client has servers of its own and a client for gateways, pyroute2 starts processes,
click parses UUIDs: with all that these import in turn a tenth of the daemon's memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

UNUSED = (
    *("ctypes.util", "gzip", "http.server", "multiprocessing", "socketserver", "urllib.error"),
    *("urllib.request", "uuid", "wsgiref.simple_server"),
)


class _Placeholder(ModuleType):
    """Has a class of every name, to inherit from."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return type(name, (), {})


@contextmanager
def left_out() -> Iterator[None]:
    """Let what is imported meanwhile find placeholders; whoever asks later gets the module."""
    placed = {name: _Placeholder(name) for name in UNUSED if name not in sys.modules}
    sys.modules.update(placed)
    try:
        yield
    finally:
        for name in placed:
            del sys.modules[name]
