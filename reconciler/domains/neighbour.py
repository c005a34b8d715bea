"""Neighbours: each pod's permanent entry for its gateway.

The gateway address exists nowhere; the entry gives it the host veth's MAC, so a pod never asks
and nobody has to answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from reconciler.core.attachment import netns_path
from reconciler.core.datapath import IpAddress, family_of
from reconciler.core.inputs import Inputs
from reconciler.core.plan import Key, Plan, Verb, compare


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One permanent entry in a pod's namespace; what the kernel has learnt is no object."""

    kind: ClassVar[str] = "neighbour"
    netns: str
    device: str
    address: IpAddress
    mac: str

    @property
    def key(self) -> Key:
        """Namespace, device, family, number."""
        return (self.netns, self.device, self.address.version, int(self.address))

    def command(self, verb: Verb) -> str:
        """The ``ip neighbour`` command, in the pod's namespace."""
        where = f"nsenter --net={netns_path(self.netns)} ip neighbour"
        if verb is Verb.DELETE:
            return f"{where} delete {self.address} dev {self.device}"
        return f"{where} replace {self.address} dev {self.device} lladdr {self.mac} nud permanent"


def desire(inputs: Inputs) -> frozenset[Neighbour]:
    """One per visited attachment and family."""
    return frozenset(
        Neighbour(a.netns, a.key.ifname, family_of(address).gateway, a.host_mac)
        for a in inputs.visited
        for address in a.addresses
    )


def plan(desired: Iterable[Neighbour], observed: Iterable[Neighbour]) -> Plan:
    """Compare only gateways' entries: any other in a pod is the pod's, or another plugin's.

    None is ever deleted: an entry goes with its link.
    """
    desired = list(desired)
    keys = {o.key for o in desired}
    return compare(desired, [o for o in observed if o.key in keys])
