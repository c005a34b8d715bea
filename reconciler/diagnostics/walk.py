"""One packet through other owners' chains: the possible outcomes, and the rules that cause them.

If a part of the packet or of a rule is not known, the rule may match. So there may be several
outcomes; a single one is certain.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from reconciler.diagnostics import ruleset as of
from reconciler.diagnostics.packet import UNKNOWN_MARK, Bits, Mark, Passage, State
from reconciler.diagnostics.ruleset import BaseChain, ChainId, Elements, Ruleset, Verdict

MAX_STEPS = 20_000
"""Rules that are looked at for one packet and chain. kube-proxy's mode iptables has one rule for
each service, and a cluster a few thousand services; a ruleset may branch without bound."""

MAX_DEPTH = 32
"""Chains below each other; nftables itself allows 16 (NFT_JUMP_STACK_SIZE)."""

EXPRESSION, PARTLY_KNOWN, STEP = 64, 32, 256
"""What an expression costs, and an element that is compared with a value known in part, in
comparisons of an element with one known whole, which take 0.1 microseconds; and how many of these
are a step."""

MAX_VERDICTS = 64
"""Chains that one map may lead to when its key is not known; beyond it the rule is not walked."""

REGISTERS = 64
"""Bytes of nftables' registers (NFT_REG32_15)."""

EITHER = (Verdict("accept"), Verdict("drop"))

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
"""What rules ask for, in words."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule that decides, or may; number 0 is its chain's policy.

    Attributes:
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
class ChainOutcome:
    """What may become of a packet in one base chain, and its mark after it.

    Attributes:
        words: accept, drop, snat, dnat; more than one if it is not certain.
        hits: rules that do, or may do, anything but accept.
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


def walk(
    base: BaseChain, passage: Passage, ruleset: Ruleset, most: int = MAX_STEPS
) -> ChainOutcome:
    """Follow a packet through one base chain and all that it jumps to, over so many rules."""
    way = _Way(passage, ruleset, most)
    words, mark = way.chain(base.id, passage.mark, 0)
    if "through" in words:
        words = words - {"through"} | {"drop" if base.drops else "accept"}
        if base.drops:
            way.hits.append(Hit(base.id, 0, "drop"))
    return ChainOutcome(base, frozenset(words), tuple(dict.fromkeys(way.hits)), mark, way.steps)


def at_hook(
    bases: Iterable[BaseChain], hook: str, passage: Passage, ruleset: Ruleset
) -> tuple[ChainOutcome, ...]:
    """Follow a packet through all chains of a hook, in their order; each has to let it pass.

    Chains of type nat see the first packet of a connection only, and one translation is all.
    """
    outcomes: list[ChainOutcome] = []
    families = {"inet", "netdev", "ip" if passage.version == 4 else "ip6"}
    here = [b for b in bases if b.hook == hook and b.id.family in families]
    if hook in of.OF_LINKS:
        device = passage.incoming if hook == "ingress" else passage.outgoing
        here = [b for b in here if device in b.devices]
    for base in sorted(here, key=lambda b: (b.priority, b.id)):
        if base.type == "nat" and passage.state is not State.NEW:
            continue
        outcome = walk(base, passage, ruleset)
        outcomes.append(outcome)
        passage = replace(passage, mark=outcome.mark)
        if outcome.surely("drop"):
            break
    return tuple(outcomes)


@dataclass(slots=True)
class _Way:
    passage: Passage
    ruleset: Ruleset
    most: int
    hits: list[Hit] = field(default_factory=list)
    steps: int = 0
    asked: tuple[str, ...] = ()
    """What the jumps on the way here have asked for that could not be evaluated."""

    def chain(self, name: ChainId, mark: Mark, depth: int) -> tuple[set[str], Mark]:
        """Return what may become of the packet in a chain; "through" if it comes out again."""
        has_room = depth <= MAX_DEPTH and self.steps < self.most
        rules = self.ruleset.rules.get(name) if has_room else None
        words: set[str] = set()
        exits: list[Mark] = []
        for number, rule in enumerate(rules or (), 1):
            if self.steps >= self.most:
                rules = None
                break
            found = Evaluation(self.passage, mark, name, self.ruleset.elements)
            found.run(rule)
            self.steps += found.steps
            if found.truth is False:
                continue
            possible, after = self._follow(found, name, number, depth)
            if "return" in possible:
                exits.append(after)
                words.add("through")
            words |= possible - {"through", "return"}
            if "through" not in possible:
                break
            mark = after if found.truth else mark.joined(after)
        else:
            exits.append(mark)
            words.add("through")
        if rules is None:
            self.hits.append(Hit(name, 0, "unread"))
            exits.append(UNKNOWN_MARK)
            words |= {"accept", "drop", "through"}
        for other in exits[1:]:
            exits[0] = exits[0].joined(other)
        return words, exits[0] if exits else mark

    def _follow(
        self, found: Evaluation, name: ChainId, number: int, depth: int
    ) -> tuple[set[str], Mark]:
        """Return what a rule that matches, or may, makes of the packet."""
        before, self.asked = self.asked, (*dict.fromkeys((*self.asked, *found.asks)),)
        asks = ", ".join(self.asked)
        self.hits += [Hit(name, number, what, asks) for what in found.changes]
        possible = set() if found.verdicts and found.truth else {"through"}
        mark = found.mark
        for verdict in found.verdicts:
            words, after = {verdict.word}, found.mark
            if verdict.word in ("jump", "goto"):
                words, after = self.chain(name.beside(verdict.chain), found.mark, depth + 1)
                if verdict.word == "goto" and "through" in words:
                    words = words - {"through"} | {"return"}
            elif verdict.word in ("drop", "snat", "dnat"):
                self.hits.append(Hit(name, number, verdict.word, asks))
            possible |= words
            mark = mark.joined(after) if len(found.verdicts) > 1 else after
        self.asked = before
        return possible, mark


class Evaluation:
    """One rule over one packet, as the kernel evaluates it, with nftables' registers.

    Attributes:
        truth: whether the rule matches; None if it may.
        verdicts: what it says then; of several, one.
        asks: what could not be evaluated.
    """

    def __init__(
        self, passage: Passage, mark: Mark, chain: ChainId, elements: of.ElementsOfSets
    ) -> None:
        self._passage = passage
        self._chain = chain
        self._elements = elements
        self._work = 0
        self._value, self._known = bytearray(REGISTERS), bytearray(REGISTERS)
        self._loaded: dict[int, str] = {}
        self.truth: bool | None = True
        self.verdicts: tuple[Verdict, ...] = ()
        self.mark = mark
        self.asks: list[str] = []
        self.changes: list[str] = []

    @property
    def steps(self) -> int:
        """What has been evaluated, in rules."""
        return max(1, self._work // STEP)

    def run(self, rule: of.Rule) -> None:
        """Evaluate a rule up to its verdict, or to what does not hold."""
        for expression in rule:
            self._work += EXPRESSION
            holds = self._evaluate(expression)
            if not holds:
                self.truth = holds
            if self.truth is False or self.verdicts:
                return

    def _evaluate(self, expression: of.Expression) -> bool | None:
        """Evaluate an expression; False ends the rule, None may."""
        match expression:
            case Verdict():
                self.verdicts = (expression,)
            case of.Changes(what):
                self.changes.append(what)
            case of.Within(register, low, high, negated):
                holds = between(*self._at(register, len(low)), low, high)
                return self._asked(self._loaded.get(register, "a value"), holds, negated)
            case of.FieldIn(name, at, ranges, negated, mask):
                holds = _any(
                    between(*masked(self._read(name, at, len(low)), mask), low, high)
                    for low, high in ranges
                )
                return self._asked(name, holds, negated)
            case of.InSet(register, name, verdicts=True):
                return self._map(register, name)
            case of.InSet(register, name, negated):
                return self._asked(f"set {name}", self._is_in(register, name), negated)
            case of.Unclear(name, ends):
                self._known[:] = bytes(REGISTERS)
                self.verdicts = EITHER if ends else ()
                return self._asked(name, None)
            case _:
                self._move(expression)
        return True

    def _asked(self, what: str, holds: bool | None, negated: bool = False) -> bool | None:
        if holds is None:
            self.asks.append(WORDS.get(what, what))
            return None
        return holds is not negated

    def _move(self, expression: of.Moves) -> None:
        match expression:
            case of.Load(name, at, length, register):
                self._loaded[register] = name
                self._put(register, *self._read(name, at, length))
            case of.Constant(register, value):
                self._put(register, value, b"\xff" * len(value))
            case of.Masked(source, register, mask, xor):
                value, known = masked(self._at(source, len(mask)), mask)
                value = bytes(v ^ x for v, x in zip(value, xor, strict=True))
                self._put(register, value, known)
                self._loaded[register] = self._loaded.get(source, "a value")
            case of.SetMark(mask_bits, bits, is_known):
                changed = self.mark.changed(mask_bits, bits)
                kept = changed.known if is_known else changed.known & ~mask_bits
                self.mark = Mark(changed.value & kept, kept)
            case of.StoreMark(register):
                value, known = self._at(register, 4)
                (bits,), (kept,) = struct.unpack("=I", value), struct.unpack("=I", known)
                self.mark = Mark(bits & kept, kept)

    def _read(self, name: str, at: int, length: int) -> Bits:
        return _cut(*self._passage.read(name, self.mark), at, length)

    def _at(self, register: int, length: int) -> Bits:
        return _cut(self._value, self._known, register, length)

    def _put(self, register: int, value: bytes, known: bytes) -> None:
        # The kernel pads what it loads to whole registers of four bytes with zeros.
        padding = -len(value) % 4
        value, known = value + bytes(padding), known + b"\xff" * padding
        end = min(register + len(value), REGISTERS)
        self._value[register:end] = value[: end - register]
        self._known[register:end] = known[: end - register]

    def _set(self, name: str) -> Elements | None:
        return self._elements.get((self._chain.family, self._chain.table, name))

    def _is_in(self, register: int, name: str) -> bool | None:
        elements = self._set(name)
        if elements is None:
            return None
        holds = _any(holds for holds, _ in self._matching(register, elements))
        return holds if holds or elements.whole else None

    def _matching(
        self, register: int, elements: Elements
    ) -> Iterator[tuple[bool | None, Verdict | None]]:
        """Yield the elements that match a register, or may (None), each with its verdict."""
        if not elements.ranges:
            return
        size = len(elements.ranges[0][0])  # keys of a set are equally long
        value, known = self._at(register, size)
        self._work += len(elements.ranges)
        if known == b"\xff" * size:
            for first, last, verdict in elements.ranges:
                if first <= value <= last:
                    yield True, verdict
        elif not any(known):
            everything = bytes(size), b"\xff" * size
            for first, last, verdict in elements.ranges:
                yield True if (first, last) == everything else None, verdict
        else:
            self._work += PARTLY_KNOWN * len(elements.ranges)
            for first, last, verdict in elements.ranges:
                holds = between(value, known, first, last)
                if holds is not False:
                    yield holds, verdict

    def _map(self, register: int, name: str) -> bool | None:
        """Find the verdicts that a map may give, and whether it is sure to give one of them."""
        elements = self._set(name)
        may: dict[Verdict, None] = {}
        for holds, verdict in self._matching(register, elements or Elements()):
            if verdict and holds:
                self.verdicts = (verdict,)
                return True
            if verdict:
                may[verdict] = None
        is_bounded = elements is not None and elements.whole and len(may) <= MAX_VERDICTS
        self.verdicts = tuple(may) if is_bounded else EITHER
        return self._asked(f"map {name}", None if self.verdicts else False)


def _any(found: Iterable[bool | None]) -> bool | None:
    best: bool | None = False
    for holds in found:
        if holds:
            return True
        best = None if holds is None else best
    return best


def _cut(value: bytes | bytearray, known: bytes | bytearray, at: int, length: int) -> Bits:
    value, known = bytes(value[at : at + length]), bytes(known[at : at + length])
    return value.ljust(length, b"\0"), known.ljust(length, b"\0")


def masked(bits: Bits, mask: bytes) -> Bits:
    """Apply a mask, if there is one; a bit that it leaves out is known to be 0."""
    if not mask:
        return bits
    value, known = (int.from_bytes(part, "big") for part in bits)
    size, number = len(mask), int.from_bytes(mask, "big")
    known |= ~number & (1 << 8 * size) - 1
    return (value & number).to_bytes(size, "big"), known.to_bytes(size, "big")


def between(value: bytes, known: bytes, low: bytes, high: bytes) -> bool | None:
    """Whether a value is in a range; None if that depends on its unknown bits."""
    size = len(low)
    bits, mask = int.from_bytes(value, "big"), int.from_bytes(known, "big")
    least, most = bits & mask, bits & mask | ~mask & (1 << 8 * size) - 1
    bottom, top = int.from_bytes(low, "big"), int.from_bytes(high, "big")
    if bottom <= least and most <= top:
        return True
    if most < bottom or least > top or (bottom == top and (bits ^ bottom) & mask):
        return False
    return None
