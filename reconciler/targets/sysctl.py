"""Sysctls of this network namespace and of pods', through /proc/sys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from reconciler.domains.sysctl import Sysctl
from reconciler.engine.observed import Observed
from reconciler.engine.plan import Change
from reconciler.errors import ApplyError, NamespaceError, ObserveError
from reconciler.targets.netlink.namespaces import entered

PROC_SYS = Path("/proc/sys")
"""``/proc/sys/net`` shows the namespace of the thread that opens it (proc(5))."""

MAX_VALUE_BYTES = 4096
"""Of one setting; those that are ours have one digit."""


class SysctlTree:
    """The settings below one directory.

    Attributes:
        root: /proc/sys, or a directory of the same shape.
    """

    def __init__(self, root: Path = PROC_SYS) -> None:
        self.root = root

    def observe(self, desired: Iterable[Sysctl]) -> Observed:
        """Read the desired settings; one whose file does not exist is left out.

        Raises nothing: what cannot be read is named in the answer.
        """
        seen = Observed()
        for netns, settings in groupby(sorted(desired, key=lambda s: s.key), lambda s: s.netns):
            try:
                with entered(netns):
                    seen = seen.with_these([s for wanted in settings if (s := self._read(wanted))])
            except (OSError, ObserveError) as error:
                unread = _unread(netns, error)
                seen = seen.with_these(unread)
        return seen

    def apply(self, actions: Sequence[Change[Sysctl]]) -> tuple[ApplyError, ...]:
        """Write each setting."""
        failures = []
        for action in actions:
            try:
                with entered(action.object.netns):
                    (self.root / action.object.name).write_text(action.object.value)
            except OSError as error:
                failures.append(ApplyError.from_errno(str(action), error))
        return tuple(failures)

    def _read(self, wanted: Sysctl) -> Sysctl | None:
        try:
            with (self.root / wanted.name).open("rb") as f:
                value = f.read(MAX_VALUE_BYTES)
            return replace(wanted, value=value.decode(errors="replace").strip())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ObserveError(f"sysctl {wanted.name}", str(error)) from error


def _unread(netns: str, error: OSError | ObserveError) -> Observed:
    """Say what could not be read: one pod's settings, or the host's."""
    if netns:
        return Observed(unread_places={netns: NamespaceError(netns, str(error))})
    if isinstance(error, OSError):
        error = ObserveError("the host's sysctls", str(error))
    return Observed(unread_kinds={Sysctl: error})
