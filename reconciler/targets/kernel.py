"""The kernel's objects and its links' settings (sysctls) as one target.

A setting of a link appears with the link and must be there before an address is, so both belong
into one plan, in the order in which the domains build upon each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Protocol, TypeVar, cast

from reconciler.domains.sysctl import Sysctl
from reconciler.engine.converge import Observed, Target
from reconciler.engine.plan import Change, Keyed
from reconciler.errors import ApplyError, NamespaceError, ObserveError
from reconciler.targets.netlink.decode import KernelObject
from reconciler.targets.netlink.namespaces import entered

PROC_SYS = Path("/proc/sys")
"""``net`` below it shows the namespace of the thread that opens a file, wherever it is mounted:
names are looked up by ``current->nsproxy->net_ns`` (net_ctl_header_lookup in net/sysctl_net.c)."""

MAX_VALUE_BYTES = 4096
"""Of one setting; those that are ours have one digit."""


K_contra = TypeVar("K_contra", bound=Keyed, contravariant=True)

SettingsTarget = Target[Sysctl, frozenset[Keyed], Change[Sysctl]]


class KernelTarget(Target[K_contra, Observed, Change[K_contra]], Protocol[K_contra]):
    """What is looked at and changed by rtnetlink; a look raises ``ObserveError``."""

    def observe(self, desired: Iterable[K_contra], /) -> Observed:
        """Look at the host, and at pods' namespaces as far as they are named."""

    def observe_at(self, places: Iterable[K_contra], /) -> Observed:
        """Look where these objects of pods live, and nowhere else."""

    def observe_inside(self, places: Iterable[K_contra], /) -> Observed:
        """Look into pods' namespaces only; raise nothing."""

    def apply(self, actions: Sequence[Change[K_contra]], /) -> tuple[ApplyError, ...]:
        """Carry out actions in order."""


class Kernel(KernelTarget[KernelObject | Sysctl]):
    """Passes each object on to the target that knows it; decides nothing."""

    def __init__(self, netlink: KernelTarget[KernelObject], sysctl: SettingsTarget) -> None:
        self._netlink = netlink
        self._sysctl = sysctl

    def observe(self, desired: Iterable[KernelObject | Sysctl]) -> Observed:
        """Look at both."""
        return self._look(self._netlink.observe, desired)

    def observe_at(self, places: Iterable[KernelObject | Sysctl]) -> Observed:
        """Look where these objects live, and nowhere else."""
        return self._look(self._netlink.observe_at, places)

    def observe_inside(self, places: Iterable[KernelObject | Sysctl]) -> Observed:
        """Look into pods' namespaces only; raise nothing."""
        return self._look(self._netlink.observe_inside, places)

    def _look(
        self, look: Callable[[list[KernelObject]], Observed], at: Iterable[KernelObject | Sysctl]
    ) -> Observed:
        at = list(at)
        settings = [o for o in at if isinstance(o, Sysctl)]
        seen = look([o for o in at if not isinstance(o, Sysctl)])
        return seen.with_these(self._sysctl.observe(settings)) if settings else seen

    def apply(self, actions: Sequence[Change[KernelObject | Sysctl]]) -> tuple[ApplyError, ...]:
        """Carry out actions in order."""
        failures: list[ApplyError] = []
        for is_setting, group in groupby(actions, key=lambda a: isinstance(a.object, Sysctl)):
            if is_setting:
                failures += self._sysctl.apply(cast("list[Change[Sysctl]]", list(group)))
            else:
                failures += self._netlink.apply(cast("list[Change[KernelObject]]", list(group)))
        return tuple(failures)


class SysctlTree:
    """The settings below /proc/sys, or a directory of the same shape."""

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
                if netns:
                    unread = Observed(unread_places={netns: NamespaceError(netns, str(error))})
                elif isinstance(error, OSError):
                    why = ObserveError("the host's sysctls", str(error))
                    unread = Observed(unread_kinds={Sysctl: why})
                else:
                    unread = Observed(unread_kinds={Sysctl: error})
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
