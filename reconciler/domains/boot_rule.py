"""What removes the CNI configuration at a boot, so that kubelet waits for this boot's daemon.

The configuration survives a reboot, and kubelet takes it for "pods can start" before the daemon
has run. A line of tmpfiles.d(5) ends that: systemd carries it out early in the boot, before any
runtime starts. Where there is no systemd, the file has no effect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from reconciler.core.facts import CONFLIST
from reconciler.domains.inputs import Inputs
from reconciler.engine.plan import Key, Plan, Verb, compare_in_place

NAME = "node-network.conf"
MODE = "0644"


@dataclass(frozen=True, slots=True)
class BootRule:
    """A file in a directory of tmpfiles.d.

    ``removes``: the only path that it removes at a boot; "" if the file says anything else.
    """

    kind: ClassVar[str] = "boot-rule"
    is_ours_by_key: ClassVar[bool] = True  # whatever has this name, it was put there by us
    in_a_fight: ClassVar[str] = (
        "another program rewrites this file; end it, or start this reconciler without "
        "--tmpfiles-dir, so that it leaves the file alone"
    )
    path: str
    removes: str
    mode: str = MODE

    @property
    def key(self) -> Key:
        return (self.path,)

    @property
    def text(self) -> str:
        """The file as it is written."""
        return (
            "# By node-network: the node is not Ready after a boot before pods can be served.\n"
            f"{_line(self.removes)}\n"
        )

    def command(self, verb: Verb) -> str:
        """The ``install`` command, with the line on its standard input (bash)."""
        if verb is Verb.DELETE:
            return f"rm {self.path}"
        return f"install -D -m {self.mode} /dev/stdin {self.path} <<<'{_line(self.removes)}'"


def _line(path: str) -> str:
    """Return the line that removes a path at a boot and at no other time.

    In it, wildcards are those of glob(7), and a percent sign begins a specifier.
    """
    literal = re.sub(r"[*?[]", r"[\g<0>]", path).replace("%", "%%")
    return f"r! {literal}"


def read(path: str, text: str, desired: str, mode: str) -> BootRule:
    """Return a file as what it says; ``desired`` is the path that it should remove."""
    wanted = BootRule(path, desired)
    return BootRule(path, desired if text == wanted.text else "", mode)


def desire(inputs: Inputs) -> frozenset[BootRule]:
    """One file, if both it and the configuration are ours to install.

    A path with white space or quotes cannot be said in one word; there is no such directory.
    """
    where = inputs.host.installation
    if not where.tmpfiles_dir or not where.conf_dir or re.search(r"[\s'\"\\]", where.conf_dir):
        return frozenset()
    return frozenset({BootRule(f"{where.tmpfiles_dir}/{NAME}", f"{where.conf_dir}/{CONFLIST}")})


def plan(desired: Iterable[BootRule], observed: Iterable[BootRule]) -> Plan:
    """Compare; nothing is deleted, because the configuration stays, too."""
    return compare_in_place(desired, observed)
