"""Rules and elements of any owner, decoded from what the kernel holds.

Not by libnftables: it ends the process at a crafted set, and leaves out of a rule what it does not
know, so a rule that drops little looks as if it dropped everything. Here such an expression is
named, and may hold or not. Constants: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest

from reconciler.diagnostics import ruleset as of
from reconciler.targets.iptables.xtables import decode_match, decode_target
from reconciler.targets.netlink import nf_tables as nft
from reconciler.targets.netlink.message import attributes

NFTA_RULE_HANDLE, NFTA_RULE_USERDATA = 3, 7
COMMENT = 0
"""Kind of a rule's user data (libnftnl's NFTNL_UDATA_RULE_COMMENT): kind, length, text, NUL."""

ELEM_FLAGS, ELEM_KEY_END = 3, 10
INTERVAL_END, CATCHALL = 1, 2

META_MARK = 3
META = {
    1: ("protocol", 2),
    META_MARK: ("mark", 4),
    6: ("iifname", 16),
    7: ("oifname", 16),
    15: ("nfproto", 1),
    16: ("l4proto", 1),
}
CT = {0: ("state", 4), 1: ("direction", 1), 2: ("status", 4)}
"""By the kernel's key: our name of a field, and its bytes."""

BASES = {1: ("network", 12, 40), 2: ("transport", 0, 4)}
"""Headers, and where addresses are in those of IPv4 and IPv6, and where ports are: first byte, and
beyond the last."""

OBJECTS = {2: "quota", 4: "limit", 10: "synproxy"}
"""NFT_OBJECT_* that may decide."""

VERDICTS = {0: "drop", 1: "accept", -3: "jump", -4: "goto", -5: "return"}
NEUTRAL = {"counter", "log", "last", "dup", "flow_offload"}
"""Expressions after which the next one is evaluated."""

ENDING = {"queue", "tproxy", "synproxy", "fwd"}

Attributes = dict[int, bytes]
Edge = tuple[bytes, bool, of.Verdict | None]
"""Where a range begins, or (False) is over."""


def name_of(place: bytes) -> str:
    """Return a name as the kernel has it; bytes that are not UTF-8 are surrogates."""
    return place[:-1].decode(errors="surrogateescape")


def decode_rule(body: bytes) -> of.Rule:
    """Return the rule in a message's attributes, without what decides nothing."""
    listed = dict(attributes(body)).get(nft.NFTA_RULE_EXPRESSIONS, b"")
    rule: list[of.Expression] = []
    for kind, element in attributes(listed):
        if kind == nft.NFTA_LIST_ELEM:
            found = dict(attributes(element))
            rule += _decode(_text(found[1]), dict(attributes(found.get(2, b""))))
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


def _decode(name: str, body: Attributes) -> Iterable[of.Expression]:
    if name in NEUTRAL:
        return ()
    if name not in DECODERS:
        return (of.Unclear(name, name in ENDING),)
    try:
        found = DECODERS[name](body)
        return found if isinstance(found, tuple) else (found,)
    except (KeyError, IndexError, struct.error):
        return (of.Unclear(name),)  # of a kernel that says it otherwise


def _text(name: bytes) -> str:
    return name[:-1].decode(errors="replace")


def _number(body: Attributes, kind: int) -> int:
    return int.from_bytes(body[kind], "big")


def _register(body: Attributes, kind: int) -> int:
    """The first byte: NFT_REG_1 to 4 are of sixteen bytes, NFT_REG32_00 and above of four."""
    number = _number(body, kind)
    return (number - 1) * 16 if number < 8 else (number - 8) * 4


def _value(body: Attributes, kind: int) -> bytes:
    return dict(attributes(body[kind]))[nft.NFTA_DATA_VALUE]


Found = of.Expression | tuple[of.Expression, ...]


def _meta(body: Attributes) -> Found:
    key = _number(body, 2)
    if 3 in body:
        return of.StoreMark(_register(body, 3)) if key == META_MARK else ()
    name, length = META.get(key, (f"meta {key}", 16))
    return of.Load(name, 0, length, _register(body, 1))


def _payload(body: Attributes) -> Found:
    base, first, beyond = BASES.get(_number(body, 2), ("link layer", 0, 0))
    at, length = _number(body, 3), _number(body, 4)
    if 5 in body:  # it writes into the packet
        return of.Changes("rewrite") if at < beyond and at + length > first else ()
    return of.Load(base, at, length, _register(body, 1))


def _cmp(body: Attributes) -> Found:
    register, operator, value = _register(body, 1), _number(body, 2), _value(body, 3)
    size, number = len(value), int.from_bytes(value, "big")
    most = (1 << 8 * size) - 1
    ranges = ((number, number), (number, number), (0, number - 1), (0, number))  # ==, !=, <, <=
    low, high = (*ranges, (number + 1, most), (number, most))[operator]  # >, >=
    if not 0 <= low <= high <= most:
        return of.Unclear("cmp")
    bounds = low.to_bytes(size, "big"), high.to_bytes(size, "big")
    return of.Within(register, *bounds, negated=operator == 1)


def _range(body: Attributes) -> Found:
    negated = _number(body, 2) == 1
    return of.Within(_register(body, 1), _value(body, 3), _value(body, 4), negated)


def _bitwise(body: Attributes) -> Found:
    if 6 in body and _number(body, 6):
        return of.Unclear("bitwise")
    return of.Masked(_register(body, 1), _register(body, 2), _value(body, 4), _value(body, 5))


def _lookup(body: Attributes) -> Found:
    name, register = name_of(body[1]), _register(body, 2)
    if 3 not in body:
        return of.InSet(register, name, negated=5 in body and bool(_number(body, 5) & 1))
    if _number(body, 3) == 0:  # NFT_REG_VERDICT
        return of.InSet(register, name, verdicts=True)
    return of.InSet(register, name), of.Load(f"map {name}", 0, 16, _register(body, 3))


def _immediate(body: Attributes) -> Found:
    if _number(body, 1):
        return of.Constant(_register(body, 1), _value(body, 2))
    return _verdict(dict(attributes(body[2]))[nft.NFTA_DATA_VERDICT])


def _verdict(data: bytes) -> of.Verdict | of.Unclear:
    found = dict(attributes(data))
    (code,) = struct.unpack(">i", found[1])
    if code not in VERDICTS:
        return of.Unclear("verdict", ends=True)
    return of.Verdict(VERDICTS[code], name_of(found.get(2, b"\0")))


def _ct(body: Attributes) -> Found:
    if 4 in body or 1 not in body:
        return ()
    name, length = CT.get(_number(body, 2), ("the connection", 16))
    return of.Load(name, 0, length, _register(body, 1))


def _objref(body: Attributes) -> Found:
    if 1 not in body:
        return of.Unclear("an object of a map")
    name = OBJECTS.get(_number(body, 1))
    return of.Unclear(name, name in ENDING) if name else ()


def _nat(body: Attributes) -> Found:
    register = _register(body, 3) if 3 in body else None
    return of.Verdict("dnat" if _number(body, 1) else "snat", register=register)


def _fib(body: Attributes) -> Found:
    result, flags = _number(body, 2), _number(body, 3)
    name = "fib"
    if result == 3 and flags == 2:  # NFT_FIB_RESULT_ADDRTYPE of NFTA_FIB_F_DADDR
        name = "daddrtype"
    elif result == 1 and flags & 1:  # NFT_FIB_RESULT_OIF of NFTA_FIB_F_SADDR
        name = "wayback"
    return of.Load(name, 0, 4, _register(body, 1))


DECODERS: dict[str, Callable[[Attributes], Found]] = {
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
    "notrack": lambda _: of.Changes("notrack"),
    "masq": lambda _: of.Verdict("snat"),
    "redir": lambda _: of.Verdict("dnat"),
    "reject": lambda _: of.Verdict("drop"),
    "match": lambda body: decode_match(_text(body[1]), _number(body, 2), body[3]),
    "target": lambda body: decode_target(_text(body[1]), _number(body, 2), body[3]),
}
"""By the kernel's name of the expression."""


def decode_elements(messages: Iterable[bytes], *, is_interval: bool) -> of.Elements:
    """Return what the messages list that answer the question for a set."""
    single: list[tuple[bytes, bytes, of.Verdict | None]] = []
    edges: list[Edge] = []
    whole = True
    for message in messages:
        listed = nft.parts(message).get(nft.NFTA_SET_ELEM_LIST_ELEMENTS, b"")
        for body in (dict(attributes(element)) for _, element in attributes(listed)):
            flags = _number(body, ELEM_FLAGS) if ELEM_FLAGS in body else 0
            data = dict(attributes(body.get(nft.NFTA_SET_ELEM_DATA, b"")))
            told = data.get(nft.NFTA_DATA_VERDICT)
            verdict = _verdict(told) if told else None
            is_odd = flags & CATCHALL or nft.NFTA_SET_ELEM_KEY not in body
            if is_odd or isinstance(verdict, of.Unclear):
                whole = False
                continue
            key = _value(body, nft.NFTA_SET_ELEM_KEY)
            if ELEM_KEY_END in body and _value(body, ELEM_KEY_END) != key:
                whole = False  # several ranges in one
            elif is_interval and ELEM_KEY_END not in body:
                edges.append((key, not flags & INTERVAL_END, verdict))
            else:
                single.append((key, key, verdict))
    return of.Elements((*single, *_joined(edges)), whole)


def _joined(edges: list[Edge]) -> Iterator[tuple[bytes, bytes, of.Verdict | None]]:
    """Pair where ranges begin with where they end; one without an end goes to the last value."""
    edges.sort(key=lambda e: e[:2])
    for (key, is_start, verdict), after in zip_longest(edges, edges[1:]):
        if is_start:
            size = len(key)
            last = int.from_bytes(after[0], "big") - 1 if after else (1 << 8 * size) - 1
            yield key, last.to_bytes(size, "big"), verdict
