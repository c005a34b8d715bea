"""The CNI executable in the runtime's directory of plugins: a copy of the one that was shipped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from reconciler.domains.inputs import Inputs
from reconciler.engine.plan import Key, Plan, Verb, compare_in_place
from schemas.cni import TYPE

MODE = "0755"


@dataclass(frozen=True, slots=True)
class Executable:
    """A program in the directory of plugins.

    ``path``: where the runtime starts it. ``copy_of``: the file that it is the same as, byte for
    byte; "" if it is another. ``mode``: its permissions in octal, as chmod takes them.
    """

    kind: ClassVar[str] = "executable"
    is_ours_by_key: ClassVar[bool] = True  # whatever has this name, it was put there by us
    in_a_fight: ClassVar[str] = (
        "another program installs a file of that name; end it, or start this reconciler without "
        "--cni-bin-dir, so that it leaves the file alone"
    )
    path: str
    copy_of: str
    mode: str = MODE

    @property
    def key(self) -> Key:
        return (self.path,)

    def command(self, verb: Verb) -> str:
        """The ``install`` command, which puts a new file in the old one's place as we do."""
        if verb is Verb.DELETE:
            return f"rm {self.path}"
        return f"install -D -m {self.mode} {self.copy_of} {self.path}"


def desire(inputs: Inputs) -> frozenset[Executable]:
    """One program, if it is ours to install."""
    where = inputs.host.installation
    if not where.bin_dir:
        return frozenset()
    return frozenset({Executable(f"{where.bin_dir}/{TYPE}", where.program)})


def plan(desired: Iterable[Executable], observed: Iterable[Executable]) -> Plan:
    """Compare; nothing is ever deleted, because pods that run will need it to end."""
    return compare_in_place(desired, observed)
