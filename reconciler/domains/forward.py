"""Forwarding: rules of ours in chains of others that drop what no rule accepts.

Only where the document asks for it. They are the chain's last rules: they replace its policy, and
decisions of the rules before them stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from reconciler.core.datapath import ALIAS, FAMILIES
from reconciler.core.facts import is_ours_to_open
from reconciler.domains.inputs import Inputs
from reconciler.engine.plan import Key, Plan, Verb, compare


@dataclass(frozen=True, slots=True)
class ForwardAccept:
    """One rule that accepts what comes from, or goes to, some links.

    Attributes:
        family, table, chain: whose chain it is in.
        way: ``iifname`` or ``oifname``.
        pattern: a link's name, or ``prefix*``.
        handles: by which the kernel knows it; more than one if it is there twice.
    """

    kind: ClassVar[str] = "nft-accept"
    family: str
    table: str
    chain: str
    way: str
    pattern: str
    handles: tuple[int, ...] = field(default=(), compare=False)

    @property
    def key(self) -> Key:
        return (self.family, self.table, self.chain, self.way, self.pattern)

    def command(self, verb: Verb) -> str:
        place = f"{self.family} {self.table} {self.chain}"
        if verb is Verb.DELETE:
            return "; ".join(f"nft delete rule {place} handle {h}" for h in self.handles or (0,))
        return f'nft add rule {place} {self.way} "{self.pattern}" counter accept comment "{ALIAS}"'


def desire(inputs: Inputs) -> frozenset[ForwardAccept]:
    """Two rules for each chain that would drop pods' packets, if the document asks for it."""
    if not inputs.document.routing.accept_forwarded:
        return frozenset()
    families = frozenset(FAMILIES[name].nft for name in inputs.families)
    return frozenset(
        ForwardAccept(chain.family, chain.table, chain.name, way, pattern)
        for chain in inputs.host.forward
        if is_ours_to_open(chain, families)
        for way in ("iifname", "oifname")
        for pattern in inputs.veth_patterns
    )


def plan(desired: Iterable[ForwardAccept], observed: Iterable[ForwardAccept]) -> Plan:
    """Compare; what carries our comment and is not desired goes."""
    return compare(desired, observed)
