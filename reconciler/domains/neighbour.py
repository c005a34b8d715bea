"""Neighbours: each pod's permanent entry for its gateway, and the host's for each pod.

No host has the gateway address; the entry gives it the host veth's MAC, so a pod sends no request.
The host sends none either: for IPv6 it would use an address of its end of the link, which is
tentative for a second or two (RFC 4862 section 5.4). Permanent entries are neither counted nor
evicted when the table is full ("neighbour table overflow", ``gc_thresh3`` in ip-sysctl).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from reconciler.core.attachment import nsenter
from reconciler.core.datapath import IpAddress, family_of
from reconciler.domains.inputs import Inputs
from reconciler.engine.plan import Key, Plan, Verb, compare_in_place


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One permanent entry; what the kernel has learnt is no object.

    ``netns``: identity of the namespace; empty for the host's.
    """

    kind: ClassVar[str] = "neighbour"
    stays: ClassVar[str] = "it goes with its link"
    netns: str
    device: str
    address: IpAddress
    mac: str

    @property
    def key(self) -> Key:
        return (self.netns, self.device, self.address.version, int(self.address))

    def command(self, verb: Verb) -> str:
        where = f"{nsenter(self.netns)}ip neighbour"
        if verb is Verb.DELETE:
            return f"{where} delete {self.address} dev {self.device}"
        return f"{where} replace {self.address} dev {self.device} lladdr {self.mac} nud permanent"


@dataclass(frozen=True, slots=True)
class Learnt:
    """A neighbour that the kernel has learnt; ``link`` is the index of ``device``."""

    link: int
    device: str
    address: IpAddress

    def __str__(self) -> str:
        return f"ip neighbour change {self.address} dev {self.device} nud probe"


ASK_S = 60.0
"""Seconds after which what was learnt is asked for again: about what the kernel itself takes for
an entry that is used and not confirmed by traffic (``base_reachable_time`` 30 s, half as much more
by chance, and ``delay_first_probe_time`` 5 s)."""

MAX_ASKED = 256
"""Neighbours that are asked for at once: a small packet each."""


def choose_to_ask(
    seen: Iterable[Learnt], asked: Mapping[Learnt, float], now: float
) -> tuple[Learnt, ...]:
    """Choose which are asked for again; those that never were first, then the longest ago.

    ``asked``: when each was, in monotonic seconds, as ``now``.
    """
    due = [n for n in seen if now - asked.get(n, float("-inf")) >= ASK_S]
    due.sort(key=lambda n: (asked.get(n, float("-inf")), n.address.version, n.address.packed))
    return tuple(due[:MAX_ASKED])


def desire(inputs: Inputs) -> frozenset[Neighbour]:
    """One for each visited attachment and family, and the host's for each whose MAC is known."""
    pods = {
        Neighbour(a.netns, a.key.ifname, family_of(address).gateway, a.host_mac)
        for a in inputs.visited
        for address in a.addresses
    }
    host = {
        Neighbour("", a.veth, address, a.pod_mac)
        for a in inputs.placed
        for address in a.addresses
        if a.is_pod_mac_known
    }
    return frozenset(pods | host)


def plan(desired: Iterable[Neighbour], observed: Iterable[Neighbour]) -> Plan:
    """Compare only what is desired: any other in a pod is the pod's, or another plugin's.

    None is ever deleted: an entry goes with its link.
    """
    return compare_in_place(desired, observed)
