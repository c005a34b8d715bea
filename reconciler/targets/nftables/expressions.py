"""Rules and elements of any owner, decoded from what the kernel holds.

Not by libnftables: it ends the process at a crafted set, and leaves out of a rule what it does not
know, so a rule that drops little looks as if it dropped everything. Here such an expression is
named, and may hold or not. Constants: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from reconciler.diagnostics.ruleset import (
    Changes,
    Constant,
    Elements,
    Expression,
    InSet,
    Load,
    Masked,
    Rule,
    StoreMark,
    Unclear,
    Verdict,
    Within,
)
from reconciler.targets.iptables.xtables import decode_match, decode_target
from reconciler.targets.netlink.message import attributes
from reconciler.targets.netlink.nf_tables import (
    NFTA_LIST_ELEM,
    NFTA_RULE_EXPRESSIONS,
    NFTA_SET_ELEM_LIST_ELEMENTS,
)
from reconciler.targets.netlink.nfnetlink import HEADERS

NFTA_RULE_HANDLE, NFTA_RULE_USERDATA = 3, 7
COMMENT = 0
"""Kind of a rule's user data (libnftnl's NFTNL_UDATA_RULE_COMMENT): kind, length, text, NUL."""

ELEM_KEY, ELEM_DATA, ELEM_FLAGS, ELEM_KEY_END = 1, 2, 3, 10
INTERVAL_END, CATCHALL = 1, 2
DATA_VALUE, DATA_VERDICT = 1, 2

FIELDS_OF_META = {
    3: "mark",
    6: "iifname",
    7: "oifname",
    15: "nfproto",
    16: "l4proto",
    1: "protocol",
}
FIELDS_OF_CT = {0: "state", 1: "direction", 2: "status"}
BASES = {1: "network", 2: "transport"}

REWRITTEN = {"network": (12, 40), "transport": (0, 4)}
"""Where addresses are in the headers of IPv4 and IPv6, and where ports are: first byte, and beyond
the last."""

VERDICTS = {0: "drop", 1: "accept", -3: "jump", -4: "goto", -5: "return"}
NEUTRAL = {"counter", "log", "last", "dup", "flow_offload"}
"""Expressions after which the next one is evaluated."""

ENDING = {"queue", "tproxy", "synproxy", "fwd"}

Attributes = dict[int, bytes]


def name_of(place: bytes) -> str:
    """Return a name as the kernel has it; bytes that are not UTF-8 are surrogates."""
    return place[:-1].decode(errors="surrogateescape")


def decode_rule(body: bytes) -> Rule:
    """Return the rule in a message's attributes, without what decides nothing."""
    listed = dict(attributes(body)).get(NFTA_RULE_EXPRESSIONS, b"")
    rule: list[Expression] = []
    for kind, element in attributes(listed):
        if kind == NFTA_LIST_ELEM:
            found = dict(attributes(element))
            name = found[1][:-1].decode(errors="replace")
            rule += _decode_expression(name, dict(attributes(found.get(2, b""))))
    return tuple(rule)


def handle_and_comment(body: bytes) -> tuple[int, str]:
    """Return a rule's handle, and the comment that its owner has put there."""
    found = dict(attributes(body))
    data = found.get(NFTA_RULE_USERDATA, b"")
    offset, comment = 0, ""
    while offset + 2 <= len(data) and not comment:
        kind, length = data[offset], data[offset + 1]
        if kind == COMMENT:
            comment = data[offset + 2 : offset + 2 + length].rstrip(b"\0").decode(errors="replace")
        offset += 2 + length
    return int.from_bytes(found.get(NFTA_RULE_HANDLE, b""), "big"), comment


def _decode_expression(name: str, body: Attributes) -> tuple[Expression, ...]:
    if name in NEUTRAL:
        return ()
    if name == "notrack":
        return (Changes(name),)
    try:
        return DECODERS[name](body) if name in DECODERS else (Unclear(name, name in ENDING),)
    except (KeyError, IndexError, struct.error):
        return (Unclear(name),)  # of a kernel that says it otherwise


def _register(number: int) -> int:
    """The first byte: NFT_REG_1 to 4 are of sixteen bytes, NFT_REG32_00 and above of four."""
    return (number - 1) * 16 if number < 8 else (number - 8) * 4


def _number(body: Attributes, kind: int) -> int:
    return int.from_bytes(body[kind], "big")


def _value(body: Attributes, kind: int) -> bytes:
    return dict(attributes(body[kind]))[DATA_VALUE]


def _meta(body: Attributes) -> tuple[Expression, ...]:
    key = _number(body, 2)
    if 3 in body:
        return (StoreMark(_register(_number(body, 3))),) if key == 3 else ()
    name = FIELDS_OF_META.get(key, f"meta {key}")
    length = {"nfproto": 1, "l4proto": 1, "protocol": 2, "mark": 4}.get(name, 16)
    return (Load(name, 0, length, _register(_number(body, 1))),)


def _payload(body: Attributes) -> tuple[Expression, ...]:
    base = BASES.get(_number(body, 2), "link layer")
    at, length = _number(body, 3), _number(body, 4)
    if 5 in body:  # it writes into the packet
        first, beyond = REWRITTEN.get(base, (0, 0))
        return (Changes("rewrite"),) if at < beyond and at + length > first else ()
    return (Load(base, at, length, _register(_number(body, 1))),)


def _cmp(body: Attributes) -> tuple[Expression, ...]:
    register, operator, value = _register(_number(body, 1)), _number(body, 2), _value(body, 3)
    size, number = len(value), int.from_bytes(value, "big")
    low, high = {
        0: (number, number),
        1: (number, number),
        2: (0, number - 1),
        3: (0, number),
        4: (number + 1, (1 << 8 * size) - 1),
        5: (number, (1 << 8 * size) - 1),
    }[operator]
    if not 0 <= low <= high < 1 << 8 * size:
        return (Unclear("cmp"),)
    bounds = low.to_bytes(size, "big"), high.to_bytes(size, "big")
    return (Within(register, *bounds, negated=operator == 1),)


def _range(body: Attributes) -> tuple[Expression, ...]:
    negated = _number(body, 2) == 1
    return (Within(_register(_number(body, 1)), _value(body, 3), _value(body, 4), negated),)


def _bitwise(body: Attributes) -> tuple[Expression, ...]:
    if _number(body, 6) if 6 in body else 0:
        return (Unclear("bitwise"),)
    source, register = _register(_number(body, 1)), _register(_number(body, 2))
    return (Masked(source, register, _value(body, 4), _value(body, 5)),)


def _lookup(body: Attributes) -> tuple[Expression, ...]:
    name = name_of(body[1])
    register = _register(_number(body, 2))
    negated = bool(_number(body, 5) & 1) if 5 in body else False
    if 3 not in body:
        return (InSet(register, name, negated),)
    if _number(body, 3) == 0:  # NFT_REG_VERDICT
        return (InSet(register, name, verdicts=True),)
    return (InSet(register, name), Load(f"map {name}", 0, 16, _register(_number(body, 3))))


def _immediate(body: Attributes) -> tuple[Expression, ...]:
    register = _number(body, 1)
    if register:
        return (Constant(_register(register), _value(body, 2)),)
    return (_verdict(dict(attributes(body[2]))[DATA_VERDICT]),)


def _verdict(data: bytes) -> Verdict | Unclear:
    found = dict(attributes(data))
    (code,) = struct.unpack(">i", found[1])
    word = VERDICTS.get(code)
    if word is None:
        return Unclear("verdict", ends=True)
    return Verdict(word, name_of(found.get(2, b"\0")))


def _ct(body: Attributes) -> tuple[Expression, ...]:
    if 4 in body or 1 not in body:
        return ()
    name = FIELDS_OF_CT.get(_number(body, 2), "the connection")
    length = 1 if name == "direction" else 4 if name in ("state", "status") else 16
    return (Load(name, 0, length, _register(_number(body, 1))),)


def _objref(body: Attributes) -> tuple[Expression, ...]:
    if 1 not in body:
        return (Unclear("an object of a map"),)
    name = {2: "quota", 4: "limit", 10: "synproxy"}.get(_number(body, 1))  # NFT_OBJECT_*
    return (Unclear(name, name in ENDING),) if name else ()


def _nat(body: Attributes) -> tuple[Expression, ...]:
    register = _register(_number(body, 3)) if 3 in body else None
    return (Verdict("dnat" if _number(body, 1) else "snat", register=register),)


def _fib(body: Attributes) -> tuple[Expression, ...]:
    result, flags = _number(body, 2), _number(body, 3)
    name = "fib"
    if result == 3 and flags == 2:  # NFT_FIB_RESULT_ADDRTYPE of NFTA_FIB_F_DADDR
        name = "daddrtype"
    elif result == 1 and flags & 1:  # NFT_FIB_RESULT_OIF of NFTA_FIB_F_SADDR
        name = "wayback"
    return (Load(name, 0, 4, _register(_number(body, 1))),)


def _xt_match(body: Attributes) -> tuple[Expression, ...]:
    return decode_match(body[1][:-1].decode(errors="replace"), _number(body, 2), body[3])


def _xt_target(body: Attributes) -> tuple[Expression, ...]:
    return decode_target(body[1][:-1].decode(errors="replace"), _number(body, 2), body[3])


def _does(word: str) -> Callable[[Attributes], tuple[Expression, ...]]:
    return lambda _: (Verdict(word),)


DECODERS: dict[str, Callable[[Attributes], tuple[Any, ...]]] = {
    "meta": _meta,
    "payload": _payload,
    "cmp": _cmp,
    "range": _range,
    "bitwise": _bitwise,
    "lookup": _lookup,
    "immediate": _immediate,
    "ct": _ct,
    "nat": _nat,
    "objref": _objref,
    "fib": _fib,
    "masq": _does("snat"),
    "redir": _does("dnat"),
    "reject": _does("drop"),
    "match": _xt_match,
    "target": _xt_target,
}
"""By the kernel's name of the expression."""


def decode_elements(messages: Iterable[bytes], *, is_interval: bool) -> Elements:
    """Return what the messages list that answer the question for a set."""
    single: list[tuple[bytes, bytes, Verdict | None]] = []
    edges: list[tuple[bytes, bool, Verdict | None]] = []
    whole = True
    for message in messages:
        listed = dict(attributes(message[HEADERS:])).get(NFTA_SET_ELEM_LIST_ELEMENTS, b"")
        for _, element in attributes(listed):
            body = dict(attributes(element))
            flags = _number(body, ELEM_FLAGS) if ELEM_FLAGS in body else 0
            verdict = _verdict_of(body)
            if flags & CATCHALL or ELEM_KEY not in body or isinstance(verdict, Unclear):
                whole = False
                continue
            key = _value(body, ELEM_KEY)
            if ELEM_KEY_END in body and _value(body, ELEM_KEY_END) != key:
                whole = False  # several ranges in one
            elif is_interval and ELEM_KEY_END not in body:
                edges.append((key, not flags & INTERVAL_END, verdict))
            else:
                single.append((key, key, verdict))
    return Elements((*single, *_joined(edges)), whole)


def _verdict_of(body: Attributes) -> Verdict | Unclear | None:
    data = dict(attributes(body[ELEM_DATA])) if ELEM_DATA in body else {}
    return _verdict(data[DATA_VERDICT]) if DATA_VERDICT in data else None


def _joined(
    edges: list[tuple[bytes, bool, Verdict | None]],
) -> Iterator[tuple[bytes, bytes, Verdict | None]]:
    """Pair where ranges begin with where they end; one without an end goes to the last value."""
    edges.sort(key=lambda e: (e[0], e[1]))
    for number, (key, is_start, verdict) in enumerate(edges):
        if not is_start:
            continue
        beyond = edges[number + 1][0] if number + 1 < len(edges) else None
        if beyond is None:
            yield key, b"\xff" * len(key), verdict
        else:
            last = int.from_bytes(beyond, "big") - 1
            yield key, last.to_bytes(len(key), "big"), verdict
