"""Rulesets of other owners as values: chains, rules and sets, as the kernel evaluates them.

A rule is what the kernel makes of it: it loads parts of the packet into registers, compares them,
and ends with a verdict. ``walk`` follows one packet through them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from reconciler.core.forward import ForwardChain

NF_INET_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
"""By number (linux/netfilter.h)."""

OF_LINKS = ("ingress", "egress")
"""Hooks of single links, before and after all others."""

IFNAMSIZ = 16
"""Bytes of a link's name, its NUL included (linux/if.h)."""


def printed(name: str) -> str:
    """Return a name as it can be printed, whatever its bytes are."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


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
        path = " ".join(map(printed, (self.family, self.table, self.name)))
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
class FieldIn:
    """Whether (field & mask) is in one of some ranges, in network order.

    iptables' matches are made of these.
    """

    field: str
    at: int
    ranges: tuple[tuple[bytes, bytes], ...]
    negated: bool = False
    mask: bytes = b""


def field_is(field: str, at: int, mask: bytes, value: bytes, negated: bool = False) -> FieldIn:
    """Ask whether (field & mask) == value."""
    return FieldIn(field, at, ((value, value),), negated, mask)


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
        register: with the address that snat or dnat translates to; None if it is another's.
    """

    word: str
    chain: str = ""
    register: int | None = None


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
    | FieldIn
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
        unread: what was not read, and why, where it may stop forwarded packets.
    """

    bases: tuple[BaseChain, ...] = ()
    rules: Mapping[ChainId, tuple[Rule, ...] | None] = field(default_factory=dict)
    elements: Mapping[tuple[str, str, str], Elements | None] = field(default_factory=dict)
    unread: tuple[tuple[str, str], ...] = ()

    def has_same(self, other: Ruleset) -> bool:
        """Whether another look has shown the same."""
        return (self.bases, self.rules, self.elements, self.unread) == (
            other.bases,
            other.rules,
            other.elements,
            other.unread,
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
        (*one.unread, *other.unread),
    )


def chain_names(ruleset: Ruleset) -> frozenset[str]:
    """Return the names of chains without a hook."""
    hooked = {base.id for base in ruleset.bases}
    return frozenset(printed(chain.name) for chain in ruleset.rules if chain not in hooked)


def forward_chains(ruleset: Ruleset) -> tuple[ForwardChain, ...]:
    """Return the base chains with hook forward whose rules are known."""
    return tuple(
        _forward_chain(base, rules)
        for base in ruleset.bases
        if base.hook == "forward" and (rules := ruleset.rules_of(base.id)) is not None
    )


def _forward_chain(base: BaseChain, rules: tuple[Rule, ...]) -> ForwardChain:
    end = next((n for n, rule in enumerate(rules) if rule == (Verdict("drop"),)), None)
    accepted = (accepted_link(rule) for rule in rules[:end])
    return ForwardChain(
        base.id.family,
        printed(base.id.table),
        printed(base.id.name),
        base.id.backend,
        drops=base.drops,
        shut=end is not None,
        accepts=frozenset(found for found in accepted if found),
    )


def accepted_link(rule: Rule) -> tuple[str, str] | None:
    """Return (iifname or oifname, pattern) of a rule that accepts by that alone."""
    match rule:
        case (
            Load("iifname" | "oifname" as way, 0, _, loaded),
            Within(register, low, high, False),
            Verdict("accept"),
        ) if loaded == register and low == high:
            # A pattern is a name without its end.
            return way, _pattern(low, len(low))
        case (
            FieldIn("iifname" | "oifname" as way, 0, ((low, high),), False, mask),
            Verdict("accept"),
        ) if low == high and mask and not mask.rstrip(b"\0").strip(b"\xff"):
            return way, _pattern(low, len(mask.rstrip(b"\0")))
        case _:
            pass
    return None


def _pattern(name: bytes, length: int) -> str:
    """Return the name of a link, or ``prefix*`` if its end is not among the bytes compared."""
    text = name[:length].split(b"\0", 1)[0]
    whole = len(text) < length or length == IFNAMSIZ
    return text.decode(errors="backslashreplace") + ("" if whole else "*")
