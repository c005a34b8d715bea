"""Sysctls of this network namespace, through /proc/sys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from reconciler.core.plan import Change
from reconciler.domains.sysctl import Sysctl
from reconciler.errors import ApplyError, ObserveError

PROC_SYS = Path("/proc/sys")
"""``/proc/sys/net`` shows the namespace of the thread that opens it (proc(5))."""


class SysctlTree:
    """The settings below one directory.

    Attributes:
        root: /proc/sys, or a directory of the same shape.
    """

    def __init__(self, root: Path = PROC_SYS) -> None:
        self.root = root

    def observe(self, desired: Iterable[Sysctl]) -> frozenset[Sysctl]:
        """Read the desired settings; one whose file does not exist is left out.

        Raises:
            ObserveError: a file exists and cannot be read.
        """
        return frozenset(s for wanted in desired if (s := self._read(wanted.name)))

    def apply(self, actions: Sequence[Change[Sysctl]]) -> tuple[ApplyError, ...]:
        """Write each setting."""
        failures = []
        for action in actions:
            try:
                (self.root / action.object.name).write_text(action.object.value)
            except OSError as error:
                failure = ApplyError.from_errno(str(action), error.errno or 0, str(error), error)
                failures.append(failure)
        return tuple(failures)

    def _read(self, name: str) -> Sysctl | None:
        try:
            return Sysctl(name, (self.root / name).read_text().strip())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ObserveError(f"sysctl {name}", str(error)) from error
