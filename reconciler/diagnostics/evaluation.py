"""One rule over one packet, evaluated as the kernel does, with its registers."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from reconciler.diagnostics.packet import Bits, Mark, Passage
from reconciler.diagnostics.ruleset import (
    ChainId,
    Changes,
    Constant,
    Elements,
    ElementsOfSets,
    Expression,
    FieldIn,
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

REGISTERS = 64
"""Bytes of nftables' registers (NFT_REG32_15)."""


@dataclass(slots=True)
class Evaluated:
    """What a rule does: whether it matches (None: it may), its verdicts, and the mark after it."""

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


class Evaluation:
    """One rule over one packet, with nftables' registers."""

    def __init__(
        self,
        passage: Passage,
        mark: Mark,
        chain: ChainId,
        elements: ElementsOfSets,
    ) -> None:
        self._passage = passage
        self._mark = mark
        self._chain = chain
        self._elements = elements
        self._work = 0
        self._value = bytearray(REGISTERS)
        self._known = bytearray(REGISTERS)
        self._asks: list[str] = []
        self._changes: list[str] = []
        self._loaded: dict[int, str] = {}

    @property
    def steps(self) -> int:
        """What has been evaluated, in rules."""
        return max(1, self._work // STEP)

    def of(self, rule: Rule) -> Evaluated:
        """Evaluate a rule up to its verdict, or to what does not hold."""
        truth: bool | None = True
        for expression in rule:
            self._work += EXPRESSION
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

    def _found(self, truth: bool | None, verdicts: tuple[Verdict, ...]) -> Evaluated:
        asks = ", ".join(dict.fromkeys(self._asks))
        return Evaluated(truth, verdicts, self._mark, asks, tuple(self._changes))

    def _evaluate(self, expression: Expression) -> bool | None:
        """Evaluate an expression; False ends the rule, None may."""
        match expression:
            case Load() | Constant() | Masked() | SetMark() | StoreMark():
                self._move(expression)
                return True
            case Within(register, low, high, negated):
                holds = between(*self._at(register, len(low)), low, high)
                return self._asked(self._loaded.get(register, "a value"), holds, negated)
            case FieldIn(name, at, ranges, negated, mask):
                holds = False
                for low, high in ranges:
                    found = between(*masked(self._read(name, at, len(low)), mask), low, high)
                    holds = True if found or holds else None if found is None else holds
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
                value, known = masked(self._at(source, len(mask)), mask)
                value = bytes(v ^ x for v, x in zip(value, xor, strict=True))
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

    def _read(self, name: str, at: int, length: int) -> Bits:
        value, known = self._passage.read(name, self._mark)
        end = at + length
        return value[at:end].ljust(length, b"\0"), known[at:end].ljust(length, b"\0")

    def _at(self, register: int, length: int) -> Bits:
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
        return self._elements.get((self._chain.family, self._chain.table, name))

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
"""What rules ask for, in words."""


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
