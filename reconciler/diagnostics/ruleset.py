"""Rulesets of other owners as values: chains, rules and sets, as the kernel evaluates them.

A rule is a row of the kernel's expressions: they load parts of the packet into registers, compare
them, and give a verdict. ``walk`` follows one packet through them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from reconciler.core.facts import ForwardChain

NF_INET_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
"""By number (linux/netfilter.h)."""

OF_LINKS = ("ingress", "egress")
"""Hooks of single links, before and after all others."""

IFNAMSIZ = 16
"""Bytes of a link's name, its NUL included (linux/if.h)."""


def printed(name: str) -> str:
    """Return a name that can be printed; bytes that are not UTF-8 are escaped."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


@dataclass(frozen=True, slots=True, order=True)
class ChainId:
    """A chain of backend "nft", or "legacy" for what only iptables-legacy shows.

    Bytes of a name that are not UTF-8 are surrogates, so that it can be asked for again.
    """

    backend: str
    family: str
    table: str
    name: str

    def beside(self, name: str) -> ChainId:
        """Return another chain of its table."""
        return ChainId(self.backend, self.family, self.table, name)

    def __str__(self) -> str:
        path = " ".join(map(printed, (self.family, self.table, self.name)))
        return f"{path} (legacy iptables)" if self.backend == "legacy" else path


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain with a hook, or with one of some links. It drops what no rule decides, or not."""

    id: ChainId
    hook: str
    type: str = "filter"
    priority: int = 0
    drops: bool = False
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Load:
    """Loads bytes of a field of the packet into a register, which is named by its first byte."""

    field: str
    at: int
    length: int
    register: int


@dataclass(frozen=True, slots=True)
class Constant:
    """Loads given bytes into a register."""

    register: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Masked:
    """Loads (source & mask) ^ xor into a register."""

    source: int
    register: int
    mask: bytes
    xor: bytes


@dataclass(frozen=True, slots=True)
class Within:
    """Whether a register's bytes are in a range, in network order; a range may have one value."""

    register: int
    low: bytes
    high: bytes
    negated: bool = False


@dataclass(frozen=True, slots=True)
class InSet:
    """Whether a set has a register's value; with ``verdicts``, the verdict that it maps it to."""

    register: int
    set: str
    negated: bool = False
    verdicts: bool = False


@dataclass(frozen=True, slots=True)
class FieldIn:
    """Whether (field & mask) is in one of some ranges: what iptables' matches are made of."""

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
    """Sets mark = (mark & ~mask) ^ value; not known if it comes from a connection's mark."""

    mask: int
    value: int
    known: bool = True


@dataclass(frozen=True, slots=True)
class StoreMark:
    """Sets the packet's mark from a register."""

    register: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """accept, drop, return, jump or goto; in a chain of type nat also snat or dnat.

    Attributes:
        register: with the address that is translated to; None if it is another's.
    """

    word: str
    chain: str = ""
    register: int | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """notrack (conntrack does not see it) or rewrite (its address or port is replaced)."""

    what: str


@dataclass(frozen=True, slots=True)
class Unclear:
    """An expression that is not evaluated: it may hold or not, or also end the packet's way."""

    name: str
    ends: bool = False


Moves = Load | Constant | Masked | SetMark | StoreMark
Expression = Moves | Within | InSet | FieldIn | Verdict | Changes | Unclear
Rule = tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Elements:
    """(first, last, verdict) in network order; not whole if more, or some are not understood."""

    ranges: tuple[tuple[bytes, bytes, Verdict | None], ...] = ()
    whole: bool = True


ElementsOfSets = Mapping[tuple[str, str, str], Elements | None]
"""By family, table and name of the set; None if it could not be read, or is beyond a bound."""


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Chains of other owners as read at one time.

    Attributes:
        rules: by chain; None or none for one that could not be read, or is beyond a bound.
        unread: what was not read, and why, where it may stop forwarded packets.
    """

    bases: tuple[BaseChain, ...] = ()
    rules: Mapping[ChainId, tuple[Rule, ...] | None] = field(default_factory=dict)
    elements: ElementsOfSets = field(default_factory=dict)
    unread: tuple[tuple[str, str], ...] = ()


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
    found = []
    for base in ruleset.bases:
        rules = ruleset.rules.get(base.id)
        if base.hook != "forward" or rules is None:
            continue
        end = next((n for n, rule in enumerate(rules) if rule == (Verdict("drop"),)), None)
        accepts = frozenset(filter(None, map(accepted_link, rules[:end])))
        names = (base.id.family, printed(base.id.table), printed(base.id.name), base.id.backend)
        found.append(ForwardChain(*names, base.drops, end is not None, accepts))
    return tuple(found)


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
            return None


def _pattern(name: bytes, length: int) -> str:
    """Return the name of a link, or ``prefix*`` if its end is not among the bytes compared."""
    text = name[:length].split(b"\0", 1)[0]
    whole = len(text) < length or length == IFNAMSIZ
    return text.decode(errors="backslashreplace") + ("" if whole else "*")
