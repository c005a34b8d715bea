"""Sysctls: the few kernel settings without which the datapath cannot work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from reconciler.core.inputs import Inputs
from reconciler.core.plan import Key, Plan, Verb, compare


@dataclass(frozen=True, slots=True)
class Sysctl:
    """One setting of the host's network namespace.

    Attributes:
        name: path below /proc/sys with slashes, because interface names may contain dots.
    """

    kind: ClassVar[str] = "sysctl"
    name: str
    value: str

    @property
    def key(self) -> Key:
        """The name."""
        return (self.name,)

    def command(self, verb: Verb) -> str:
        """``sysctl -w``; a setting is never deleted."""
        return f"sysctl -w {self.name}={self.value}"


def desire(inputs: Inputs) -> frozenset[Sysctl]:
    """Forwarding on; loose reverse-path filtering on secondary ENIs.

    ``rp_filter=2``: the filter looks up the way back without our mark, finds ``main`` and so the
    primary ENI, and strictly takes whatever comes in by another one for spoofed (RFC 3704 section
    2.4; Linux ``fib_validate_source``). For the primary and for pods' links that lookup finds the
    link the packet came by, so they keep whatever the host has.
    """
    settings = {Sysctl("net/ipv4/ip_forward", "1")}
    settings |= {
        Sysctl(f"net/ipv4/conf/{name}/rp_filter", "2")
        for eni, name in inputs.pod_enis
        if eni.device_index
    }
    return frozenset(settings)


def plan(desired: Iterable[Sysctl], observed: Iterable[Sysctl]) -> Plan:
    """Compare only what is desired: every other setting is somebody else's."""
    desired = list(desired)
    names = {o.name for o in desired}
    return compare(desired, [o for o in observed if o.name in names])
