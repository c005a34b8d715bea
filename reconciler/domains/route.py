"""Routes: one table per secondary ENI, one table of pods, and each pod's own two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from reconciler.core import datapath
from reconciler.core.attachment import nsenter
from reconciler.domains.inputs import Inputs
from reconciler.engine.plan import Key, Plan, Verb, compare

BOOT = 3
"""Protocol of routes whose maker named none (linux/rtnetlink.h, RTPROT_BOOT)."""


@dataclass(frozen=True, slots=True)
class Route:
    """One unicast route.

    Attributes:
        netns: identity of the namespace; empty for the host's.
        gateway: next hop; None for what is reached directly over the device.
        metric: routes of different metric stand side by side; ours have the family's.
        protocol: who made it (``rtm_protocol``); ours is stamped.
        tos: of packets that it is for, alone; routes of different ones stand side by side, and
            ours are for all.
        options: its metrics; ours have none.
        source: of packets that name none (``rtm_prefsrc``); in a pod its own address, because the
            kernel would take the first one on the link, which may be another program's.
    """

    kind: ClassVar[str] = "route"
    netns: str
    table: int
    destination: datapath.IpNetwork
    device: str
    gateway: datapath.IpAddress | None = None
    metric: int = 0
    protocol: int = datapath.PROTOCOL
    tos: int = 0
    options: str = ""
    source: datapath.IpAddress | None = None

    @property
    def key(self) -> Key:
        d = self.destination
        # Longest first: a gateway must be reachable before a route may name it.
        network = (d.version, -d.prefixlen, int(d.network_address))
        return (self.netns, self.table, *network, self.metric, self.tos)

    def command(self, verb: Verb) -> str:
        where = nsenter(self.netns)
        via = f" via {self.gateway}" if self.gateway else ""
        table = "" if self.table == datapath.MAIN_TABLE else f" table {self.table}"
        word = "delete" if verb is Verb.DELETE else "replace"
        metric = f" metric {self.metric}" if self.metric else ""
        metric += f" tos {self.tos:#x}" if self.tos else ""
        source = f" src {self.source}" if self.source else ""
        scope = "" if self.gateway or verb is Verb.DELETE else " scope link"
        return (
            f"{where}ip route {word} {self.destination}{via} dev {self.device}"
            f"{scope}{source}{metric}{table} proto {self.protocol}"
        )


def desire(inputs: Inputs) -> frozenset[Route]:
    """Compute all routes.

    A secondary ENI's table sends everything to the VPC router of its subnet; the gateway's own
    route makes it reachable whatever ``main`` says. The pods' table leads to each pod's veth.
    """
    routes: set[Route] = set()
    for eni, name in inputs.pod_enis:
        for family in inputs.families_of(eni):
            if eni.device_index and not eni.is_primary:
                table, router = datapath.eni_table(eni.device_index), eni.router(family)
                routes.update(_default("", table, family, name, router))
    return frozenset(routes | desire_pods(inputs))


def desire_pods(inputs: Inputs) -> frozenset[Route]:
    """The pods' part of it: the way to each, and each one's own."""
    routes: set[Route] = set()
    for a in inputs.placed:
        for address in a.addresses:
            metric = datapath.family_of(address).metric
            routes.add(
                Route(
                    "", datapath.PODS_TABLE, datapath.host_network(address), a.veth, metric=metric
                )
            )
    for a in inputs.visited:
        for address in a.addresses:
            family = datapath.family_of(address)
            way = a.netns, datapath.MAIN_TABLE, family, a.key.ifname, family.gateway
            routes.update(_default(*way, source=address))
    return frozenset(routes)


def _default(
    netns: str,
    table: int,
    family: datapath.Family,
    device: str,
    gateway: datapath.IpAddress,
    *,
    source: datapath.IpAddress | None = None,
) -> Iterator[Route]:
    """A default route, after the one to its next hop if the kernel wants that."""
    if family.gateway_route:
        yield Route(netns, table, datapath.host_network(gateway), device, metric=family.metric)
    metric = family.metric
    yield Route(netns, table, family.everything, device, gateway, metric, source=source)


def is_owned(route: Route) -> bool:
    """Ours carries our protocol number."""
    return route.protocol == datapath.PROTOCOL


def plan(desired: Iterable[Route], observed: Iterable[Route]) -> Plan:
    """Compare; routes of other protocols are foreign.

    Except those in a pod with the same destination, gateway and device and the kernel's default
    protocol: the stock plugin made them, and only protocol and source change.
    """
    desired = frozenset(desired)
    ways = {replace(o, protocol=BOOT, source=None) for o in desired if o.netns}

    def owned(route: Route) -> bool:
        return is_owned(route) or route in ways

    return compare(desired, observed, owned=owned)
