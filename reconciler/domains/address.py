"""Addresses of links: each secondary ENI's own, and each pod's.

The primary ENI's address is configured by the host's own network manager.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from reconciler.core.attachment import nsenter
from reconciler.core.datapath import IpAddress
from reconciler.domains.inputs import Inputs
from reconciler.engine.plan import Key, Plan, Verb, compare


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """One address of one link.

    ``netns``: identity of the namespace; empty for the host's. ``prefix_length``: bits; the kernel
    keeps one entry per address and length. ``connected_route``: the kernel adds a route for the
    network to ``main``. We never want it: for a secondary ENI it would send the host's traffic out
    of the wrong interface (``IFA_F_NOPREFIXROUTE``, Linux 3.14).
    """

    kind: ClassVar[str] = "address"
    netns: str
    device: str
    address: IpAddress
    prefix_length: int
    connected_route: bool = False

    @property
    def key(self) -> Key:
        a = self.address
        return (self.netns, self.device, a.version, int(a), self.prefix_length)

    def command(self, verb: Verb) -> str:
        where = nsenter(self.netns)
        what = f"{self.address}/{self.prefix_length} dev {self.device}"
        if verb is Verb.DELETE:
            return f"{where}ip address delete {what}"
        flag = "" if self.connected_route else " noprefixroute"
        # No other host can have it, and a pod must not wait for duplicate detection.
        flag += " nodad" if self.address.version == 6 else ""
        return f"{where}ip address replace {what}{flag}"


def desire(inputs: Inputs) -> frozenset[LinkAddress]:
    """Each secondary ENI's primary address on its link, and each pod's on its own."""
    enis = {
        LinkAddress("", name, eni.primary, eni.subnet_cidr.prefixlen)
        for eni, name in inputs.pod_enis
        if not eni.is_primary
    }
    return frozenset(enis | desire_pods(inputs))


def desire_pods(inputs: Inputs) -> frozenset[LinkAddress]:
    """The pods' part of it."""
    return frozenset(
        LinkAddress(a.netns, a.key.ifname, own, own.max_prefixlen)
        for a in inputs.visited
        for own in a.addresses
    )


def plan(desired: Iterable[LinkAddress], observed: Iterable[LinkAddress]) -> Plan:
    """Compare; an address that another program put on a link is foreign."""
    desired = frozenset(desired)
    # Ours are those that EC2 gave to this ENI or pod, whatever their prefix length has become.
    ours = {(o.netns, o.device, o.address) for o in desired}

    def is_owned(o: LinkAddress) -> bool:
        return (o.netns, o.device, o.address) in ours

    return compare(desired, observed, owned=is_owned)
