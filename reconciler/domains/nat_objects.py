"""The objects of our one nftables table, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from reconciler.core.datapath import TABLE, IpAddress
from reconciler.core.ranges import print_range
from reconciler.engine.plan import Key, Verb


@dataclass(frozen=True, slots=True)
class NftTable:
    """Our table; everything else lives in it.

    ``flags``: ours has none; a dormant table does nothing. ``readable``: false if it holds
    something that we never write.
    """

    kind: ClassVar[str] = "nft-table"
    name: str = TABLE
    flags: tuple[str, ...] = ()
    readable: bool = True

    @property
    def key(self) -> Key:
        return (self.name,)

    def command(self, verb: Verb) -> str:
        return f"nft {'delete' if verb is Verb.DELETE else 'add'} table inet {self.name}"


@dataclass(frozen=True, slots=True)
class NftChain:
    """A chain and all its rules, in order: a rule has no identity but its place.

    ``hook``: "" for a chain that is only jumped to; then type and priority mean nothing.
    ``policy``: "" is accept. ``rules``: expressions of each rule as canonical JSON.
    """

    kind: ClassVar[str] = "nft-chain"
    name: str
    rules: tuple[str, ...] = ()
    type: str = ""
    hook: str = ""
    priority: int = 0
    policy: str = ""

    @property
    def key(self) -> Key:
        return (self.name,)

    @property
    def place(self) -> tuple[str, str, int, str]:
        """Where the kernel calls it, and what becomes of what no rule decides."""
        return (self.type, self.hook, self.priority, self.policy or "accept")

    def command(self, verb: Verb) -> str:
        place = f"inet {TABLE} {self.name}"
        if verb is Verb.DELETE:
            return f"nft delete chain {place}"
        if verb is Verb.UPDATE:
            return f"nft flush chain {place}, then {len(self.rules)} rules"
        hook = f" {{ type {self.type} hook {self.hook} priority {self.priority}; }}"
        return f"nft add chain {place}{hook if self.hook else ''}, then {len(self.rules)} rules"


@dataclass(frozen=True, slots=True)
class NftSet:
    """A set; with ``verdicts`` a verdict map, with ``values`` one to others of the keys' type.

    ``type``: of the elements' keys; of several parts with `` . `` between them. ``interval``:
    elements are ranges. Without auto-merge: the planner coalesces, so that the kernel holds
    exactly the elements that were written.
    """

    kind: ClassVar[str] = "nft-set"
    name: str
    type: str
    interval: bool = False
    verdicts: bool = False
    values: bool = False

    @property
    def key(self) -> Key:
        return (self.name,)

    def command(self, verb: Verb) -> str:
        noun = "map" if self.verdicts or self.values else "set"
        if verb is Verb.DELETE:
            return f"nft delete {noun} inet {TABLE} {self.name}"
        values = " : verdict" if self.verdicts else f" : {self.type}" if self.values else ""
        flags = " flags interval;" if self.interval else ""
        return f"nft add {noun} inet {TABLE} {self.name} {{ type {self.type}{values};{flags} }}"


@dataclass(frozen=True, slots=True)
class NftElement:
    """One element: an address, or a range of them, with its verdict or value if the set is a map.

    ``goto``: the chain a verdict map sends matching packets to; "" in all others. ``why``: which
    source it comes from, for people. ``value``: the address that a map leads to.
    """

    kind: ClassVar[str] = "nft-element"
    set: str
    first: IpAddress
    last: IpAddress
    goto: str = ""
    why: str = field(default="", compare=False)
    value: IpAddress | None = None

    def __hash__(self) -> int:
        # By numbers: an address makes text of itself to compute its hash.
        return hash((self.set, int(self.first), int(self.last), self.goto))

    @property
    def key(self) -> Key:
        return (self.set, self.first.version, int(self.first), int(self.last))

    @property
    def text(self) -> str:
        """The range as an operator writes it: an address, a CIDR, or first-last."""
        return print_range(self.first, self.last)

    def command(self, verb: Verb) -> str:
        word = "delete" if verb is Verb.DELETE else "add"
        leads_to = (
            f" : goto {self.goto}" if self.goto else f" : {self.value}" if self.value else ""
        )
        return f"nft {word} element inet {TABLE} {self.set} {{ {self.text}{leads_to} }}"


@dataclass(frozen=True, slots=True)
class NftLink:
    """An element that is a link, or a link with an address.

    ``goto``: as of ``NftElement``.
    """

    kind: ClassVar[str] = NftElement.kind
    set: str
    link: str
    address: IpAddress | None = None
    goto: str = ""

    def __hash__(self) -> int:
        # By numbers, likewise.
        return hash((self.set, self.link, self.address and int(self.address), self.goto))

    @property
    def key(self) -> Key:
        address = self.address
        number = (address.version, int(address)) if address else ()
        return (self.set, self.link, *number)

    def command(self, verb: Verb) -> str:
        word = "delete" if verb is Verb.DELETE else "add"
        address = f" . {self.address}" if self.address else ""
        verdict = f" : goto {self.goto}" if self.goto else ""
        return f'nft {word} element inet {TABLE} {self.set} {{ "{self.link}"{address}{verdict} }}'


@dataclass(frozen=True, slots=True)
class NftCounter:
    """A counter that rules name; what it has counted is no part of it."""

    kind: ClassVar[str] = "nft-counter"
    name: str

    @property
    def key(self) -> Key:
        return (self.name,)

    def command(self, verb: Verb) -> str:
        word = "delete" if verb is Verb.DELETE else "add"
        return f"nft {word} counter inet {TABLE} {self.name}"


NftObject = NftTable | NftChain | NftSet | NftCounter | NftElement | NftLink
