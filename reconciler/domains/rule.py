"""Rules: which table answers; their number depends on ENIs, never on pods or CIDRs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from reconciler.core import datapath
from reconciler.domains.inputs import Inputs
from reconciler.engine.plan import Key, Plan, Verb, compare

BAND = frozenset(
    {datapath.PODS_PRIORITY, datapath.PRIMARY_PRIORITY, datapath.HOST_PRIORITY}
    | set(range(datapath.ENI_PRIORITY, datapath.ENI_PRIORITY + datapath.MAX_DEVICE_INDEX + 1))
)
"""Priorities of our rules."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One policy rule with the action ``lookup``. The kernel knows it by all its fields.

    Attributes:
        family: "ipv4" or "ipv6": a rule list of its own each.
        mark: None if packets of any mark match; compared under ``mask``.
        source: None if packets from anywhere match.
        protocol: who made it (``FRA_PROTOCOL``).
        extra: selectors that no rule of ours has (iif, dport, ...), as text; "" for ours.
        told: the kernel's own message, by which it deletes exactly this one.
    """

    kind: ClassVar[str] = "rule"
    family: str
    priority: int
    table: int
    mark: int | None = None
    mask: int = 0
    source: datapath.IpNetwork | None = None
    protocol: int = datapath.PROTOCOL
    extra: str = ""
    told: bytes = field(default=b"", compare=False, repr=False)

    @property
    def key(self) -> Key:
        """Everything; priority first, which is the order the kernel walks them in."""
        source = str(self.source) if self.source else ""
        mark = -1 if self.mark is None else self.mark
        return (
            self.family,
            self.priority,
            self.table,
            mark,
            self.mask,
            source,
            self.protocol,
            self.extra,
        )

    def command(self, verb: Verb) -> str:
        v6 = " -6" if self.family == "ipv6" else ""
        word = "delete" if verb is Verb.DELETE else "add"
        source = f" from {self.source}" if self.source else ""
        mark = "" if self.mark is None else f" fwmark {self.mark:#x}/{self.mask:#x}"
        table = "main" if self.table == datapath.MAIN_TABLE else self.table
        return (
            f"ip{v6} rule {word} priority {self.priority}{source}{mark} "
            f"lookup {table} protocol {self.protocol}"
        )


def desire(inputs: Inputs) -> frozenset[Rule]:
    """Compute the rules of ``reconciler.core.datapath``'s table, for each family."""
    rules: set[Rule] = set()
    marks = datapath.Marks(inputs.document.routing.mark_mask)
    for name in inputs.families:
        rules.add(Rule(name, datapath.PODS_PRIORITY, datapath.PODS_TABLE))
        rules.add(
            Rule(name, datapath.PRIMARY_PRIORITY, datapath.MAIN_TABLE, marks.of(0), marks.mask)
        )
    for eni, _ in inputs.pod_enis:
        if eni.is_primary or not eni.device_index:
            continue
        k, own = eni.device_index, datapath.family_of(eni.primary).name
        table = datapath.eni_table(k)
        for family in inputs.families_of(eni):
            rules.add(Rule(family.name, datapath.ENI_PRIORITY + k, table, marks.of(k), marks.mask))
        rules.add(
            Rule(own, datapath.HOST_PRIORITY, table, source=datapath.host_network(eni.primary))
        )
    return frozenset(rules)


def is_owned(rule: Rule) -> bool:
    """Ours has our protocol number *and* a priority of our band."""
    return (
        rule.family in datapath.FAMILIES
        and rule.protocol == datapath.PROTOCOL
        and rule.priority in BAND
    )


def plan(desired: Iterable[Rule], observed: Iterable[Rule]) -> Plan:
    """Compare; all other rules are foreign."""
    return compare(desired, observed, owned=is_owned)
