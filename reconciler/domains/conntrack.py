"""Connections that conntrack remembers of addresses whose pods are gone.

They would misdirect the next pod with that address, or a client that retries with the same ports
(amazon-vpc-cni-k8s #3634). So they end before the address's cooldown does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from reconciler.core.datapath import IpAddress
from reconciler.core.ranges import Range
from reconciler.engine.plan import Change, Key, Plan, Verb


@dataclass(frozen=True, slots=True)
class Flow:
    """All connections from and to one address."""

    kind: ClassVar[str] = "conntrack"
    address: IpAddress

    @property
    def key(self) -> Key:
        return (self.address.version, int(self.address))

    def command(self, verb: Verb) -> str:
        word = "-D" if verb is Verb.DELETE else "-L"
        return f"conntrack {word} -s {self.address}; conntrack {word} -d {self.address}"


@dataclass(frozen=True, slots=True)
class ConntrackFlush:
    """Addresses whose connections are looked for, and ended but for those that are ``spared``."""

    addresses: frozenset[IpAddress]
    spared: frozenset[IpAddress] = frozenset()


@dataclass(frozen=True, slots=True)
class OpenTo:
    """A question: how many IPv4 connections pods have open to some destinations.

    Attributes:
        pods: addresses of the pods.
        destinations: as ``unite`` leaves them; after a service's address was translated.
        translated: whether they see another address than the pod's.
    """

    pods: frozenset[IpAddress]
    destinations: tuple[Range, ...]
    translated: bool


def plan(desired: ConntrackFlush, observed: Iterable[Flow]) -> Plan:
    """End every connection of an address that cools down."""
    reason = "its pod is gone"
    doomed = desired.addresses - desired.spared
    flows = sorted((f for f in observed if f.address in doomed), key=lambda f: f.key)
    return Plan(tuple(Change(Verb.DELETE, flow, reason) for flow in flows))
