"""Source NAT: whose address others see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from schemas.pods import Pattern
from schemas.value import SOURCES, Destination, Model
from schemas.vocabulary import Field

MAX_CIDRS = 10_000
"""CIDRs in one list. A ConfigMap could hold more. A change of so many takes a second or two, and
pods that start meanwhile wait for it."""

MAX_PREFIX_LISTS = 20
"""Prefix lists in one list of destinations: each takes EC2 calls of its own."""

MAX_RULES = 16
"""Rules in ``rules``: the first packet of a connection may be compared with each of them."""

MANY = Field(max_length=MAX_CIDRS)
SOME = Field(min_length=1, max_length=MAX_CIDRS)

_SOURCES = (
    "Beside CIDRs, sources that the node derives from its VPC: "
    + "; ".join(f"{name}, {about}" for name, about in SOURCES.items())
    + "; pl-..., the entries of a prefix list."
)


class SnatPolicy(Model):
    """Which destinations see the node's address, and which a pod's own."""

    mode: Literal["node", "external"] = Field(
        default="node",
        description="node: packets that leave the VPC carry the node's primary address. "
        "external: they carry the pod's own address, and a NAT gateway or router translates it.",
    )
    exclude_cidrs: Annotated[tuple[Destination, ...], MANY] = Field(
        default=(),
        alias="excludeCIDRs",
        description="Destinations outside the VPC that see pod addresses: peered VPCs, "
        "on-premises networks. The VPC's own CIDRs are always excluded from SNAT. Overlapping and "
        "adjacent entries are merged; a bare address means that address alone, and host bits are "
        f"cleared. {_SOURCES} What a source no longer has is taken out when two observations of "
        "EC2 agree, at least 10s apart.",
    )
    only_cidrs: Annotated[tuple[Destination, ...], SOME] | None = Field(
        default=None,
        alias="onlyCIDRs",
        description="The only destinations that see the node's address; all others see the pod's. "
        "excludeCIDRs and the VPC's CIDRs still see the pod's. The same sources may be named. "
        "Default: every destination outside the VPC.",
    )

    def _faults(self) -> Iterator[str]:
        lists = (("excludeCIDRs", self.exclude_cidrs), ("onlyCIDRs", self.only_cidrs or ()))
        for key, given in lists:
            yield from _too_many_lists(key, given)
        if self.mode == "node":
            return
        for key, given in lists:
            if given:
                yield (
                    f"{key}: has no effect in mode external, where nothing is translated; "
                    "remove it, or choose mode node"
                )


def _too_many_lists(key: str, given: Iterable[object]) -> Iterator[str]:
    if len({d for d in given if isinstance(d, str)} - SOURCES.keys()) > MAX_PREFIX_LISTS:
        yield f"{key}: more than {MAX_PREFIX_LISTS} prefix lists; put them into one"


class EgressRule(Model):
    """What connections of some namespaces to some destinations look like from outside."""

    namespace: Pattern = Field(
        description="Pattern for the namespace of pods, as pay-*: the shell's, and case counts. A "
        "pod whose name the runtime did not say is matched by no rule."
    )
    to: Annotated[tuple[Destination, ...], SOME] = Field(
        description="Destinations: CIDRs, and sources as excludeCIDRs takes them. What is inside "
        "the VPC counts only where a CIDR here lies within one of the VPC's: 0.0.0.0/0 does not "
        "mean the VPC, nor link-local addresses, nor routing.externalServiceCIDRs."
    )
    identity: Literal["pod", "node", "dedicated"] = Field(
        alias="as",
        description="pod: the pod's own address. node: the node's primary address. dedicated: an "
        "address of an ENI that no pod has, the same for all pods of the namespace on this node, "
        "and after a reboot. While there is none, these connections are refused.",
    )

    def _faults(self) -> Iterator[str]:
        yield from _too_many_lists("to", self.to)


class Snat(SnatPolicy):
    """Source NAT: which address others outside the VPC see."""

    rules: Annotated[tuple[EgressRule, ...], Field(max_length=MAX_RULES)] = Field(
        default=(),
        description="Addresses by namespace and destination. The first rule that matches a "
        "connection decides, before podGroups' snat and all else here. Connections that are open "
        "keep what they began with. Default: none.",
    )
    ports: Literal["fully-random", "random", "sequential"] = Field(
        default="fully-random",
        description="How source ports are chosen, in nftables' words. fully-random: at random, "
        "so that connections do not compete for the same port. random: by a hash of the "
        "connection. sequential: the pod's own port if it is free, else the next one.",
    )
