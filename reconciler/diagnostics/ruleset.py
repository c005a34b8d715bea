"""Rulesets of other owners as values: chains, rules and sets, as the kernel evaluates them.

A rule is what the kernel makes of it: it loads parts of the packet into registers, compares them,
and ends with a verdict. ``core.walk`` follows one packet through them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NF_INET_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
"""By number (linux/netfilter.h)."""

OF_LINKS = ("ingress", "egress")
"""Hooks of single links, before and after all others."""


@dataclass(frozen=True, slots=True, order=True)
class ChainId:
    """A chain's identity.

    Attributes:
        backend: "nft", or "legacy" for what only iptables-legacy shows.
        name: bytes that are not UTF-8 are surrogates, so that it can be asked for again.
    """

    backend: str
    family: str
    table: str
    name: str

    def __str__(self) -> str:
        names = (self.family, self.table, self.name)
        path = " ".join(
            n.encode(errors="surrogateescape").decode(errors="backslashreplace") for n in names
        )
        return f"{path} (legacy iptables)" if self.backend == "legacy" else path


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain that packets come to by themselves.

    Attributes:
        hook: prerouting, input, forward, output or postrouting; ingress or egress of links.
        type: filter, nat or route.
        priority: chains of a hook are asked in its order.
        drops: its policy is to drop what no rule decides about.
        devices: names of links, for a hook of links.
    """

    id: ChainId
    hook: str
    type: str = "filter"
    priority: int = 0
    drops: bool = False
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Load:
    """Bytes of a field of the packet into a register.

    Attributes:
        at: the first byte of the field.
        register: the first byte of the register file.
    """

    field: str
    at: int
    length: int
    register: int


@dataclass(frozen=True, slots=True)
class Constant:
    """Given bytes into a register."""

    register: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Masked:
    """(register & mask) ^ xor."""

    source: int
    register: int
    mask: bytes
    xor: bytes


@dataclass(frozen=True, slots=True)
class Within:
    """Whether a register's bytes are in a range, in network order; one value is one as well."""

    register: int
    low: bytes
    high: bytes
    negated: bool = False


@dataclass(frozen=True, slots=True)
class InSet:
    """Whether a set has what is in a register, or with ``verdicts``, what a map says to it."""

    register: int
    set: str
    negated: bool = False
    verdicts: bool = False


@dataclass(frozen=True, slots=True)
class FieldIs:
    """Whether (field & mask) == value; iptables' matches are made of these."""

    field: str
    at: int
    mask: bytes
    value: bytes
    negated: bool = False


@dataclass(frozen=True, slots=True)
class InRanges:
    """Whether bytes of a field are in one of some ranges, in network order."""

    field: str
    at: int
    ranges: tuple[tuple[bytes, bytes], ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class SetMark:
    """mark = (mark & ~mask) ^ value.

    Attributes:
        known: false if the bits come from somewhere else, as a connection's mark.
    """

    mask: int
    value: int
    known: bool = True


@dataclass(frozen=True, slots=True)
class StoreMark:
    """The packet's mark from a register."""

    register: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of the packet.

    Attributes:
        word: accept, drop, return, jump or goto; in a chain of type nat also snat or dnat.
        chain: that a jump or goto leads to.
    """

    word: str
    chain: str = ""


@dataclass(frozen=True, slots=True)
class Changes:
    """The packet goes on to what comes next, and something of it was changed for good.

    Attributes:
        what: notrack: conntrack does not see it; rewrite: another address or port stands in it.
    """

    what: str


@dataclass(frozen=True, slots=True)
class Unclear:
    """An expression that is not evaluated: it may hold or not.

    Attributes:
        name: the kernel's.
        ends: it may also end the packet's way.
    """

    name: str
    ends: bool = False


Expression = (
    Load
    | Constant
    | Masked
    | Within
    | InSet
    | FieldIs
    | InRanges
    | SetMark
    | StoreMark
    | Verdict
    | Changes
    | Unclear
)

Rule = tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Elements:
    """What a set has.

    Attributes:
        ranges: (first, last, verdict) in network order; one value is a range as well.
        whole: false if there is more, or something that is not understood.
    """

    ranges: tuple[tuple[bytes, bytes, Verdict | None], ...] = ()
    whole: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Ruleset:
    """Chains of other owners: one look at them, and equal to no other one.

    Attributes:
        bases: those that packets come to by themselves.
        rules: by chain; None for one that could not be read, or is beyond a bound.
        elements: by family, table and name; likewise.
    """

    bases: tuple[BaseChain, ...] = ()
    rules: Mapping[ChainId, tuple[Rule, ...] | None] = field(default_factory=dict)
    elements: Mapping[tuple[str, str, str], Elements | None] = field(default_factory=dict)

    def has_same(self, other: Ruleset) -> bool:
        """Whether another look has shown the same."""
        return (self.bases, self.rules, self.elements) == (
            other.bases,
            other.rules,
            other.elements,
        )

    def rules_of(self, chain: ChainId) -> tuple[Rule, ...] | None:
        """Return the rules of a chain; None if unknown."""
        return self.rules.get(chain)

    def elements_of(self, family: str, table: str, name: str) -> Elements | None:
        """Return what a set has; None if unknown."""
        return self.elements.get((family, table, name))


def joined(one: Ruleset, other: Ruleset) -> Ruleset:
    """Return the chains of both backends."""
    return Ruleset(
        (*one.bases, *other.bases),
        {**one.rules, **other.rules},
        {**one.elements, **other.elements},
    )
