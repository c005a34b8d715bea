"""The way of one packet through other owners' chains: what may become of it, and by which rule.

What is not known of a packet, or of a rule, makes a rule one that may match. So the answer is a
set of fates: if there is one, it is certain.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import IntFlag

from reconciler.core.datapath import IpAddress
from reconciler.diagnostics.ruleset import (
    OF_LINKS,
    BaseChain,
    ChainId,
    Changes,
    Constant,
    Elements,
    Expression,
    FieldIs,
    InRanges,
    InSet,
    Load,
    Masked,
    Rule,
    SetMark,
    StoreMark,
    Unclear,
    Verdict,
    Within,
)

MAX_STEPS = 20_000
"""Rules that are looked at for one packet and chain. kube-proxy's mode iptables has one rule for
each service, and a cluster a few thousand services; a ruleset may branch without bound."""

MAX_DEPTH = 32
"""Chains below each other; nftables itself allows 16 (NFT_JUMP_STACK_SIZE)."""

REGISTERS = 64
"""Bytes of nftables' registers (NFT_REG32_15)."""

IFNAMSIZ = 16
ALL = 0xFFFFFFFF


class State(IntFlag):
    """Of a connection, in the bits of nftables and of iptables' match conntrack."""

    INVALID = 1
    ESTABLISHED = 2
    RELATED = 4
    NEW = 8


@dataclass(frozen=True, slots=True)
class Mark:
    """A packet's mark, as far as it is known.

    Attributes:
        known: the bits that are.
    """

    value: int = 0
    known: int = ALL

    def joined(self, other: Mark) -> Mark:
        """Return what both have in common."""
        known = self.known & other.known & ~(self.value ^ other.value)
        return Mark(self.value & known, known)

    def changed(self, mask: int, value: int) -> Mark:
        """Return it after ``(mark & ~mask) ^ value``."""
        kept = ~mask & ALL
        known = (self.known & kept) | (mask & ALL)
        return Mark((self.value & kept ^ value) & known, known)


UNKNOWN_MARK = Mark(0, 0)


@dataclass(frozen=True, slots=True)
class Passage:
    """A packet at one hook; None is what is not known of it.

    Attributes:
        incoming, outgoing: names of links, or ``prefix*``; "" where there is none.
        state: of its connection.
        translated: its destination was translated (DNAT).
        local: its destination is an address of the host.
        has_way_back: a route leads to its source by the link it came by.
        mark: at the first chain.
    """

    incoming: str | None
    outgoing: str | None
    source: IpAddress | None
    destination: IpAddress | None
    protocol: int | None = None
    source_port: int | None = None
    port: int | None = None
    state: State | None = State.NEW
    translated: bool | None = False
    local: bool | None = None
    has_way_back: bool | None = None
    mark: Mark = UNKNOWN_MARK

    @property
    def version(self) -> int:
        """The family's number."""
        address = self.source or self.destination
        return address.version if address else 4

    def read(self, name: str, mark: Mark) -> tuple[bytes, bytes]:
        """Return a field's bytes, and which of their bits are known."""
        match name:
            case "network":
                return self._network()
            case "transport":
                return _joined(_number(self.source_port, 2), _number(self.port, 2), (b"", b""))
            case "iifname":
                return _text(self.incoming)
            case "oifname":
                return _text(self.outgoing)
            case "mark":
                return _host(mark.value), _host(mark.known)
            case "state":
                return (_host(self.state or 0), _host(ALL if self.state is not None else 0))
            case _:
                return self._of_family(name)

    def _of_family(self, name: str) -> tuple[bytes, bytes]:
        match name:
            case "l4proto":
                return _number(self.protocol, 1)
            case "nfproto":
                return _number(2 if self.version == 4 else 10, 1)
            case "protocol":
                return _number(0x0800 if self.version == 4 else 0x86DD, 2)
            case "status":
                known = 0 if self.translated is None else DNATED
                return _host(DNATED if self.translated else 0), _host(known)
            case "direction":
                known_direction = self.state is State.NEW
                return b"\0", (b"\xff" if known_direction else b"\0")
            case "wayback":
                back = b"\0" * 3 + bytes([bool(self.has_way_back)])
                return back, (b"\0" if self.has_way_back is None else b"\xff") * 4
            case "daddrtype":
                known_type = 0 if self.local is None else ALL
                return _host(RTN_LOCAL if self.local else RTN_UNICAST), _host(known_type)
            case _:
                return b"", b""

    def _network(self) -> tuple[bytes, bytes]:
        size = 4 if self.version == 4 else 16
        source, destination = _address(self.source, size), _address(self.destination, size)
        protocol = _number(self.protocol, 1)
        if self.version == 4:
            return _joined(_unknown(9), protocol, _unknown(2), source, destination)
        return _joined(_unknown(6), protocol, _unknown(1), source, destination)


RTN_UNICAST, RTN_LOCAL = 1, 2
DNATED = 1 << 5
"""IPS_DST_NAT (linux/netfilter/nf_conntrack_common.h)."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule that decides, or may.

    Attributes:
        number: of the rule in its chain, from 1; 0 for the chain's policy.
        what: drop, snat, dnat, notrack, rewrite, or "unread" for what could not be walked.
        asks: what could not be evaluated; "" if it decides for certain.
    """

    chain: ChainId
    number: int
    what: str
    asks: str = ""

    def __str__(self) -> str:
        if self.what == "unread":
            return f"chain {self.chain}, which was not read"
        what = f"rule {self.number}" if self.number else "the policy"
        return f"{what} of chain {self.chain}"


@dataclass(frozen=True, slots=True)
class Fate:
    """What may become of a packet in one base chain.

    Attributes:
        words: accept, drop, snat, dnat; more than one if it is not certain.
        hits: rules that do, or may do, anything but accept.
        mark: as the chain leaves it.
        steps: rules that were looked at; a long one, or one with large sets, is several.
    """

    base: BaseChain
    words: frozenset[str]
    hits: tuple[Hit, ...] = ()
    mark: Mark = UNKNOWN_MARK
    steps: int = 0

    def surely(self, word: str) -> bool:
        """Whether this and nothing else becomes of it."""
        return self.words == {word}

    def hit(self, word: str) -> Hit | None:
        """Return the first rule that does it."""
        return next((h for h in self.hits if h.what == word), None)


RulesOf = Callable[[ChainId], tuple[Rule, ...] | None]
ElementsOf = Callable[[str, str, str], Elements | None]


def walk(
    base: BaseChain,
    passage: Passage,
    rules_of: RulesOf,
    elements_of: ElementsOf,
    most: int = MAX_STEPS,
) -> Fate:
    """Follow a packet through one base chain and all that it jumps to, over so many rules."""
    way = _Way(passage, rules_of, elements_of, most)
    words, mark = way.chain(base.id, passage.mark, 0)
    if "through" in words:
        words = words - {"through"} | {"drop" if base.drops else "accept"}
        if base.drops:
            way.hits.append(Hit(base.id, 0, "drop"))
    return Fate(base, frozenset(words), tuple(dict.fromkeys(way.hits)), mark, way.steps)


def at_hook(
    bases: Iterable[BaseChain],
    hook: str,
    passage: Passage,
    rules_of: RulesOf,
    elements_of: ElementsOf,
) -> tuple[Fate, ...]:
    """Follow a packet through all chains of a hook, in their order; each has to let it pass.

    Chains of type nat see the first packet of a connection only, and one translation is all.
    """
    fates: list[Fate] = []
    families = {"inet", "netdev", "ip" if passage.version == 4 else "ip6"}
    here = [b for b in bases if b.hook == hook and b.id.family in families]
    if hook in OF_LINKS:
        device = passage.incoming if hook == "ingress" else passage.outgoing
        here = [b for b in here if device in b.devices]
    for base in sorted(here, key=lambda b: (b.priority, b.id)):
        if base.type == "nat" and passage.state is not State.NEW:
            continue
        fate = walk(base, passage, rules_of, elements_of)
        fates.append(fate)
        passage = replace(passage, mark=fate.mark)
        if fate.surely("drop"):
            break
    return tuple(fates)


@dataclass(slots=True)
class _Way:
    passage: Passage
    rules_of: RulesOf
    elements_of: ElementsOf
    most: int
    hits: list[Hit] = field(default_factory=list)
    steps: int = 0
    asked: tuple[str, ...] = ()
    """What the jumps on the way here have asked for that could not be evaluated."""

    def chain(self, name: ChainId, mark: Mark, depth: int) -> tuple[set[str], Mark]:
        """Return what may become of the packet in a chain; "through" if it comes out again."""
        rules = self.rules_of(name) if depth <= MAX_DEPTH and self.steps < self.most else None
        if rules is None:
            self.hits.append(Hit(name, 0, "unread"))
            return {"accept", "drop", "through"}, UNKNOWN_MARK
        words: set[str] = set()
        exits: list[Mark] = []
        for number, rule in enumerate(rules, 1):
            if self.steps >= self.most:
                self.hits.append(Hit(name, 0, "unread"))
                words |= {"accept", "drop", "through"}
                exits.append(UNKNOWN_MARK)
                break
            evaluation = _Evaluation(self.passage, mark, name, self.elements_of)
            found = evaluation.of(rule)
            self.steps += max(1, evaluation.work // STEP)
            if found.truth is False:
                continue
            for what in found.changes:
                asks = ", ".join(dict.fromkeys(a for a in (*self.asked, found.asks) if a))
                self.hits.append(Hit(name, number, what, asks))
            possible, after = self._verdicts(found, name, number, depth)
            if "return" in possible:
                exits.append(after)
            words |= possible - {"through"}
            if "through" not in possible:
                break
            mark = after if found.truth else mark.joined(after)
        else:
            exits.append(mark)
            words.add("through")
        if "return" in words:
            words = words - {"return"} | {"through"}
        for other in exits[1:]:
            exits[0] = exits[0].joined(other)
        return words, exits[0] if exits else mark

    def _verdicts(
        self, found: _Found, name: ChainId, number: int, depth: int
    ) -> tuple[set[str], Mark]:
        possible: set[str] = set() if found.verdicts and found.truth else {"through"}
        mark = found.mark
        before = self.asked
        self.asked = (*before, found.asks) if found.asks else before
        for verdict in found.verdicts:
            words, after = self._verdict(verdict, name, found.mark, depth)
            possible |= words
            mark = mark.joined(after) if len(found.verdicts) > 1 else after
            if verdict.word in ("drop", "snat", "dnat"):
                asks = ", ".join(dict.fromkeys(self.asked))
                self.hits.append(Hit(name, number, verdict.word, asks))
        self.asked = before
        return possible, mark

    def _verdict(
        self, verdict: Verdict, name: ChainId, mark: Mark, depth: int
    ) -> tuple[set[str], Mark]:
        if verdict.word not in ("jump", "goto"):
            return {verdict.word}, mark
        there = ChainId(name.backend, name.family, name.table, verdict.chain)
        words, after = self.chain(there, mark, depth + 1)
        if verdict.word == "goto" and "through" in words:
            words = words - {"through"} | {"return"}
        return words, after


@dataclass(slots=True)
class _Found:
    """What a rule does: its truth (None: it may hold), its verdicts, and the mark after it."""

    truth: bool | None
    verdicts: tuple[Verdict, ...]
    mark: Mark
    asks: str = ""
    changes: tuple[str, ...] = ()


EXPRESSION, PARTLY_KNOWN, STEP = 64, 32, 256
"""What an expression costs, and an element that is compared with a value known in part, in
comparisons of an element with one known whole, which take 0.1 microseconds; and how many of these
are a step."""

MAX_VERDICTS = 64
"""Chains that one map may lead to when its key is not known; beyond it the rule is not walked."""


class _Evaluation:
    """One rule over one packet, as nftables' registers go."""

    def __init__(
        self, passage: Passage, mark: Mark, chain: ChainId, elements_of: ElementsOf
    ) -> None:
        self._passage = passage
        self._mark = mark
        self._chain = chain
        self._elements_of = elements_of
        self.work = 0
        self._value = bytearray(REGISTERS)
        self._known = bytearray(REGISTERS)
        self._asks: list[str] = []
        self._changes: list[str] = []
        self._loaded: dict[int, str] = {}

    def of(self, rule: Rule) -> _Found:
        truth: bool | None = True
        for expression in rule:
            self.work += EXPRESSION
            if isinstance(expression, Verdict):
                return self._found(truth, (expression,))
            if isinstance(expression, InSet) and expression.verdicts:
                verdicts, sure = self._map(expression)
                if not verdicts:
                    return self._found(False, ())
                return self._found(truth if sure else None, verdicts)
            if isinstance(expression, Unclear) and expression.ends:
                self._asks.append(expression.name)
                return self._found(None, (Verdict("accept"), Verdict("drop")))
            holds = self._evaluate(expression)
            if holds is False:
                return self._found(False, ())
            if holds is None:
                truth = None
        return self._found(truth, ())

    def _found(self, truth: bool | None, verdicts: tuple[Verdict, ...]) -> _Found:
        asks = ", ".join(dict.fromkeys(self._asks))
        return _Found(truth, verdicts, self._mark, asks, tuple(self._changes))

    def _evaluate(self, expression: Expression) -> bool | None:
        """Carry out an expression; False ends the rule, None may."""
        match expression:
            case Load() | Constant() | Masked() | SetMark() | StoreMark():
                self._move(expression)
                return True
            case Within(register, low, high, negated):
                holds = _between(*self._at(register, len(low)), low, high)
                return self._asked(self._loaded.get(register, "a value"), holds, negated)
            case FieldIs(name, at, mask, value, negated):
                bits, known = self._read(name, at, len(mask))
                wanted = bytes(k & m for k, m in zip(known, mask, strict=True))
                differs = any((b ^ v) & w for b, v, w in zip(bits, value, wanted, strict=True))
                holds = False if differs else True if wanted == mask else None
                return self._asked(name, holds, negated)
            case InRanges(name, at, ranges, negated):
                found = [
                    _between(*self._read(name, at, len(low)), low, high) for low, high in ranges
                ]
                holds = True if True in found else None if None in found else False
                return self._asked(name, holds, negated)
            case InSet(register, name, negated):
                return self._asked(f"set {name}", self._is_in(register, name), negated)
            case Unclear(name):
                self._known[:] = bytes(REGISTERS)
                return self._asked(name, None, negated=False)
            case Changes(what):
                self._changes.append(what)
                return True
            case Verdict():
                return True

    def _asked(self, what: str, holds: bool | None, negated: bool) -> bool | None:
        if holds is None:
            self._asks.append(WORDS.get(what, what))
            return None
        return holds is not negated

    def _move(self, expression: Load | Constant | Masked | SetMark | StoreMark) -> None:
        match expression:
            case Load(name, at, length, register):
                self._loaded[register] = name
                self._put(register, *self._read(name, at, length))
            case Constant(register, value):
                self._put(register, value, b"\xff" * len(value))
            case Masked(source, register, mask, xor):
                value, known = self._at(source, len(mask))
                # A bit that is masked away is known, whatever it was.
                known = bytes(k | ~m & 0xFF for k, m in zip(known, mask, strict=True))
                value = bytes(v & m ^ x for v, m, x in zip(value, mask, xor, strict=True))
                self._put(register, value, known)
                self._loaded[register] = self._loaded.get(source, "a value")
            case SetMark(mask_bits, bits, known_bits):
                changed = self._mark.changed(mask_bits, bits)
                kept = changed.known if known_bits else changed.known & ~mask_bits
                self._mark = Mark(changed.value & kept, kept)
            case StoreMark(register):
                value, known = self._at(register, 4)
                (bits,), (mask,) = struct.unpack("=I", value), struct.unpack("=I", known)
                self._mark = Mark(bits & mask, mask)

    def _read(self, name: str, at: int, length: int) -> tuple[bytes, bytes]:
        value, known = self._passage.read(name, self._mark)
        end = at + length
        return value[at:end].ljust(length, b"\0"), known[at:end].ljust(length, b"\0")

    def _at(self, register: int, length: int) -> tuple[bytes, bytes]:
        end = register + length
        return (
            bytes(self._value[register:end]).ljust(length, b"\0"),
            bytes(self._known[register:end]).ljust(length, b"\0"),
        )

    def _put(self, register: int, value: bytes, known: bytes) -> None:
        # The kernel pads what it loads to whole registers of four bytes with zeros.
        padding = -len(value) % 4
        value, known = value + bytes(padding), known + b"\xff" * padding
        end = min(register + len(value), REGISTERS)
        self._value[register:end] = value[: end - register]
        self._known[register:end] = known[: end - register]

    def _set(self, name: str) -> Elements | None:
        return self._elements_of(self._chain.family, self._chain.table, name)

    def _is_in(self, register: int, name: str) -> bool | None:
        elements = self._set(name)
        if elements is None:
            return None
        maybe = not elements.whole
        for holds, _ in self._matching(register, elements):
            if holds:
                return True
            maybe = True
        return None if maybe else False

    def _matching(
        self, register: int, elements: Elements
    ) -> Iterator[tuple[bool | None, Verdict | None]]:
        """Yield what has, or may have, what is in a register; and its verdict."""
        if not elements.ranges:
            return
        size = len(elements.ranges[0][0])  # keys of a set are equally long
        value, known = self._at(register, size)
        self.work += len(elements.ranges)
        if known == b"\xff" * size:
            for first, last, verdict in elements.ranges:
                if first <= value <= last:
                    yield True, verdict
        elif not any(known):
            everything = bytes(size), b"\xff" * size
            for first, last, verdict in elements.ranges:
                yield True if (first, last) == everything else None, verdict
        else:
            self.work += PARTLY_KNOWN * len(elements.ranges)
            for first, last, verdict in elements.ranges:
                holds = _between(value, known, first, last)
                if holds is not False:
                    yield holds, verdict

    def _map(self, expression: InSet) -> tuple[tuple[Verdict, ...], bool]:
        """Return the verdicts that a map may give, and whether it is sure to give one of them."""
        elements = self._set(expression.set)
        may: dict[Verdict, None] = {}
        for holds, verdict in self._matching(expression.register, elements or Elements()):
            if verdict is None:
                continue
            if holds:
                return (verdict,), True
            may[verdict] = None
        if elements is None or not elements.whole or len(may) > MAX_VERDICTS:
            self._asks.append(f"map {expression.set}")
            return (Verdict("accept"), Verdict("drop")), False
        if may:
            self._asks.append(f"map {expression.set}")
        return tuple(may), False


WORDS = {
    "l4proto": "the protocol",
    "transport": "the port",
    "network": "the address",
    "iifname": "the incoming link",
    "oifname": "the outgoing link",
    "mark": "the packet's mark",
    "state": "the connection's state",
    "wayback": "whether a route leads back by the same link",
    "daddrtype": "whether the destination is the host's",
}
"""What rules ask for, for people."""


def _between(value: bytes, known: bytes, low: bytes, high: bytes) -> bool | None:
    """Whether a value lies in a range, for all that its unknown bits may be."""
    size = len(low)
    bits, mask = int.from_bytes(value, "big"), int.from_bytes(known, "big")
    unknown = ~mask & (1 << 8 * size) - 1
    least, most = bits & mask, bits & mask | unknown
    bottom, top = int.from_bytes(low, "big"), int.from_bytes(high, "big")
    if bottom <= least and most <= top:
        return True
    if most < bottom or least > top:
        return False
    if bottom == top:
        return None if (bits ^ bottom) & mask == 0 else False
    return None


Bits = tuple[bytes, bytes]


def _joined(*parts: Bits) -> Bits:
    return b"".join(p[0] for p in parts), b"".join(p[1] for p in parts)


def _unknown(length: int) -> Bits:
    return bytes(length), bytes(length)


def _number(value: int | None, length: int) -> Bits:
    if value is None:
        return _unknown(length)
    return value.to_bytes(length, "big"), b"\xff" * length


def _address(address: IpAddress | None, length: int) -> Bits:
    return (address.packed, b"\xff" * length) if address else _unknown(length)


def _text(name: str | None) -> Bits:
    if name is None:
        return _unknown(IFNAMSIZ)
    if name.endswith("*"):  # all that begin so
        prefix = name[:-1].encode()
        return prefix.ljust(IFNAMSIZ, b"\0"), (b"\xff" * len(prefix)).ljust(IFNAMSIZ, b"\0")
    return name.encode().ljust(IFNAMSIZ, b"\0")[:IFNAMSIZ], b"\xff" * IFNAMSIZ


def _host(value: int) -> bytes:
    """As the kernel keeps numbers of its own; addresses and ports are in network order."""
    return struct.pack("=I", value)
